//! A container's way in: all of it, or nothing.
//!
//! The entry in the book comes first and says that the rest may be half done; whatever ends a launch early, the way out
//! (`remove.rs`) finds by it what there is to undo. That is also what the next start does after a kill.

use std::{
    fmt::Write as _,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use libcontainer::{state::Init, sys::process::pidfd_open};
use nix::unistd::Pid;
use protobuf::{Message as _, MessageField};
use runtime_v2_api::{
    Any,
    bootstrap::{BootstrapParams, Extension},
    pack, runc,
    supervisor::{self as wire, Phase},
    task, types, unpack,
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::oneshot, time::timeout_at};

use crate::{
    book::{AddError, Entry, Name, Span, Stage, Step, now},
    bundle::{self, Spec},
    children,
    fault::Fault,
    ground::Ground,
    recover,
};

/// A launch whose client names no deadline has so long.
const LIMIT: Duration = Duration::from_secs(120);
/// `start` does little, and so does a shim that answers for the first time.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A launch that makes sense as far as we can tell.
struct Wanted {
    request: wire::LaunchRequest,
    spec: Spec,
    options: Any,
}

/// Makes a container that waits at its gate. When this fails, or when nobody waits for it any more, nothing is left of it.
pub(crate) async fn launch(
    ground: &Arc<Ground>,
    namespace: &str,
    mut request: wire::LaunchRequest,
    limit: Option<Duration>,
) -> Result<wire::Container, Fault> {
    let until = Instant::now() + limit.unwrap_or(LIMIT);
    let name = Name::new(namespace, &request.id).map_err(Fault::Invalid)?;
    let spec = Spec::read(&request).map_err(Fault::Invalid)?;
    let options = options(ground, &request.options).map_err(Fault::Invalid)?;
    if request.options.is_none() && ground.settings().runtime.systemd_cgroup {
        request.spec = bundle::name_unit(&request.spec, &name).map_err(Fault::Invalid)?;
    }
    let begin = now();
    ground.book.add(&name, |created| entry(ground, &name, &request, created)).map_err(|error| match error {
        AddError::Exists(_) | AddError::Forgotten(..) => Fault::Exists(error.to_string()),
        AddError::Io(..) => Fault::Failed(error.to_string()),
    })?;
    let wanted = Wanted { request, spec, options };
    let recorded = Span(Step::Record, begin, now());

    // A task of its own: it is brought to an end even if the client goes away.
    let (tell, told) = oneshot::channel();
    let ground = ground.clone();
    ground.launches().insert(name.clone());
    tokio::spawn(async move {
        run(&ground, &name, wanted, recorded, until, tell).await;
        ground.launches().remove(&name);
        // It may have ended before it was launched.
        recover::finish_ended(&ground, name);
    });
    told.await.unwrap_or_else(|_| Err(Fault::Unavailable("the supervisor ends".to_owned())))
}

async fn run(
    ground: &Arc<Ground>,
    name: &Arc<Name>,
    wanted: Wanted,
    recorded: Span,
    until: Instant,
    mut tell: oneshot::Sender<Result<wire::Container, Fault>>,
) {
    let mut progress = Progress { spans: vec![recorded], step: Step::Record };
    let made = tokio::select! {
        made = timeout_at(until.into(), make(ground, name, &wanted, &mut progress)) => made.ok(),
        () = tell.closed() => Some(Err(Fault::Unavailable("the client has gone away".to_owned()))),
    };
    let made = made.unwrap_or_else(|| {
        let step = progress.step.text();
        Err(Fault::Deadline(format!(
            "launch container {name}: out of time when about to {step}; nothing is left of it"
        )))
    });
    let fault = match made.map(|()| ground.book.container(name)) {
        Ok(Some(container)) => match tell.send(Ok(container)) {
            Ok(()) => return log::info!("launched container {name}"),
            // Nobody knows of it, so nobody would ever remove it.
            Err(_) => None,
        },
        Ok(None) => return log::error!("container {name} is gone from the book while it was launched"),
        Err(fault) => Some((tell, fault)),
    };
    log::info!("undo the launch of container {name}: {}", fault.as_ref().map_or("its client is gone", |_| "it failed"));
    let undone = ground.change(name, |entry| entry.stage = Stage::Launching);
    let undone = match undone {
        Ok(()) => ground.end(name).await,
        Err(fault) => Err(fault),
    };
    if let Err(error) = &undone {
        ground.book.trouble(name, Some(format!("undo the launch of container {name}: {error}; remove it, or restart")));
    }
    if let Some((tell, fault)) = fault
        && tell.send(Err(fault)).is_err()
    {
        log::debug!("nobody waits for the launch of container {name} any more");
    }
}

/// How far a launch has come.
struct Progress {
    spans: Vec<Span>,
    step: Step,
}

impl Progress {
    fn begin(&mut self, step: Step) -> u64 {
        self.step = step;
        now()
    }

    fn end(&mut self, begin: u64) {
        self.spans.push(Span(self.step, begin, now()));
    }
}

async fn make(ground: &Arc<Ground>, name: &Arc<Name>, wanted: &Wanted, progress: &mut Progress) -> Result<(), Fault> {
    let (places, request) = (ground.places(), &wanted.request);
    let bundle = places.bundle(name);
    let failed = |doing: &str| {
        let doing = format!("launch container {name}: {doing}");
        move |error: io::Error| Fault::Failed(format!("{doing}: {error}"))
    };

    let begin = progress.begin(Step::Bundle);
    let made = bundle::make(&bundle, &wanted.spec, &request.spec);
    made.map_err(failed(&format!("make the bundle {}", bundle.display())))?;
    let logs = places.logs(name);
    bundle::make_logs(&logs).map_err(failed(&format!("make {}", logs.display())))?;
    progress.end(begin);

    let mut rootfs: Vec<types::Mount> = request.rootfs.clone();
    if let Some(machine) = request.machine_root.as_ref() {
        let begin = progress.begin(Step::Scratch);
        rootfs.push(bundle::make_scratch(&bundle, machine.size).map_err(failed("mount the scratch space"))?);
        progress.end(begin);
    }

    let begin = progress.begin(Step::StartShim);
    start(ground, name, &wanted.options).await?;
    progress.end(begin);

    let begin = progress.begin(Step::Connect);
    let address = ground.book.look(name, |entry| entry.address.clone()).unwrap_or_default();
    ground.shims.add(name, &address);
    let connected: task::ConnectResponse = {
        let request = task::ConnectRequest { id: request.id.clone(), ..Default::default() };
        ground.shims.ask(name, "Connect", &request, START_LIMIT).await?
    };
    let pid = Pid::from_raw(connected.shim_pid.cast_signed());
    let find = |error: &dyn std::fmt::Display| {
        Fault::Failed(format!("launch container {name}: find its shim, process {pid}: {error}"))
    };
    // If it had ended in between, then Create would fail on its connection: whatever is watched here answers it.
    let pidfd = pidfd_open(pid).map_err(|error| find(&error))?;
    let init = Init::of(pid).map_err(|error| find(&error))?;
    ground.shims.watch(name, pidfd).map_err(|error| find(&error))?;
    ground.change(name, |entry| entry.shim = Some(init))?;
    progress.end(begin);

    let begin = progress.begin(Step::Create);
    let create = create_request(ground, name, request, rootfs, &wanted.options);
    let created: task::CreateTaskResponse = ground.shims.ask(name, "Create", &create, LIMIT).await?;
    progress.end(begin);

    let spans = progress.spans.as_slice().into();
    ground.change(name, |entry| {
        (entry.stage, entry.pid, entry.launch) = (Stage::Live, created.pid, spans);
        if entry.phase == Phase::UNKNOWN {
            entry.phase = Phase::CREATED;
        }
    })
}

/// The entry of a container of which nothing is there yet.
fn entry(ground: &Ground, name: &Name, request: &wire::LaunchRequest, created: u64) -> Entry {
    let labels = request.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
    Entry {
        stage: Stage::Launching,
        created,
        after: ground.relay.last(),
        address: socket(&ground.places().sockets(), &ground.address, name).into(),
        shim: None,
        terminal: request.terminal,
        stdin: request.stdin,
        auto_remove: request.auto_remove,
        labels: labels.collect(),
        launch: Box::default(),
        pid: 0,
        started: 0,
        exit: None,
        oom: false,
        deleted: false,
        phase: Phase::UNKNOWN,
    }
}

/// The path of the socket of a container's shim, which is a hash that containerd's contract fixes. Known beforehand, so that
/// it can be removed whenever the shim was killed.
fn socket(folder: &Path, ours: &str, name: &Name) -> String {
    let mut path = format!("{}/", folder.display());
    for byte in Sha256::digest(format!("{ours}/{}/{}", name.namespace, name.id)) {
        // Writing to a String cannot fail.
        write!(path, "{byte:02x}").unwrap_or_default();
    }
    path
}

/// The client's options, or those of the configuration; with our own folder for states, which is where they are looked for.
fn options(ground: &Ground, any: &MessageField<Any>) -> Result<Any, String> {
    let mut options = match any.as_ref() {
        Some(any) => unpack::<runc::Options>(any)
            .map_err(|error| format!("options: {error}"))?
            .ok_or_else(|| format!("options of type {:?}: it takes containerd.runc.v1.Options", any.type_url))?,
        None => {
            let default = ground.settings().runtime;
            runc::Options {
                systemd_cgroup: default.systemd_cgroup,
                no_pivot_root: default.no_pivot_root,
                no_new_keyring: default.no_new_keyring,
                shim_cgroup: default.shim_cgroup,
                ..Default::default()
            }
        }
    };
    let root = ground.places().runtime().to_string_lossy().into_owned();
    if !options.root.is_empty() && options.root != root {
        return Err(format!("options: Root is the supervisor's to choose ({root})"));
    }
    options.root = root;
    pack(&options).map_err(|error| format!("options: {error}"))
}

/// Has a shim started, which then listens on its socket.
async fn start(ground: &Ground, name: &Name, options: &Any) -> Result<(), Fault> {
    let params = BootstrapParams {
        instance_id: name.id.to_string(),
        namespace: name.namespace.to_string(),
        containerd_ttrpc_address: ground.address.clone(),
        containerd_grpc_address: ground.address.clone(),
        extensions: vec![Extension { value: MessageField::some(options.clone()), ..Default::default() }],
        socket_dir: Some(ground.places().sockets().to_string_lossy().into_owned()),
        ..Default::default()
    };
    let failed = |why: String| Fault::Failed(format!("launch container {name}: start its shim: {why}"));
    let params = params.write_to_bytes().map_err(|error| failed(error.to_string()))?;
    let command = ground.shim(name, "start").map_err(failed)?;
    children::run(&ground.reaper, command, &params, START_LIMIT).await.map(drop).map_err(failed)
}

fn create_request(
    ground: &Ground,
    name: &Name,
    request: &wire::LaunchRequest,
    rootfs: Vec<types::Mount>,
    options: &Any,
) -> task::CreateTaskRequest {
    let (places, default) = (ground.places(), ground.settings().log);
    let (created, stdin) = ground.book.look(name, |entry| (entry.created, entry.stdin)).unwrap_or_default();
    let size = Some(request.log.max_size).filter(|size| *size > 0).unwrap_or(default.max_size);
    let files = Some(request.log.max_files).filter(|files| *files > 0).unwrap_or(default.max_files);
    let attach = percent_encode(&places.attach(created));
    task::CreateTaskRequest {
        id: request.id.clone(),
        bundle: places.bundle(name).to_string_lossy().into_owned(),
        rootfs,
        terminal: request.terminal,
        stdin: if stdin { "attach:".to_owned() } else { String::new() },
        stdout: format!("log://{}?attach={attach}&size={size}&files={files}", percent_encode(&places.log(name))),
        options: MessageField::some(options.clone()),
        ..Default::default()
    }
}

/// A path as it stands in a URI (RFC 3986, section 2): all but unreserved characters and slashes encoded.
fn percent_encode(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            text.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            write!(text, "%{byte:02X}").unwrap_or_default();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_where_the_shim_computes_it() {
        // From `echo -n /run/containerd/containerd.sock/k8s.io/web-1 | sha256sum`, as in the shim's own test.
        let name = Name::new("k8s.io", "web-1").unwrap();
        assert_eq!(
            socket(Path::new("/run/x/s"), "/run/containerd/containerd.sock", &name),
            "/run/x/s/f584ec2740b3f1866089a3d3cc055d405fab7e0faf16258890f45bf7d733bad4"
        );
    }

    #[test]
    fn a_path_survives_its_uri() {
        assert_eq!(percent_encode(Path::new("/var/lib/a b&c=d?e%/log.1~")), "/var/lib/a%20b%26c%3Dd%3Fe%25/log.1~");
        assert_eq!(percent_encode(Path::new("/ö")), "/%C3%B6");
    }
}
