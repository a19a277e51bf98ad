//! What the supervisor can count, in OpenMetrics' text format, which Prometheus reads.
//!
//! Nothing is collected for a scraper that does not come, but two histograms: how long containers and execs took to start.
//! A scrape is encoded family by family and sent as it is encoded, so what it costs in memory is one family.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use libcontainer::state::Init;
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, getpid, sysconf},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet, text},
    metrics::{
        MetricType,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use runtime_v2_api::{
    Timestamp,
    events::{TaskExecAdded, TaskExecStarted, TaskExit, TaskStart},
    forward::Envelope,
    supervisor::{Container, Phase, Usage},
    topic, unpack,
};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::{relay::Relay, usage::Usages};

mod http;
#[cfg(test)]
mod tests;

pub use http::{Exporter, listen};

/// So many execs are awaited at once for the sake of their latency.
const MOST_EXECS: usize = 4096;

/// What is exported, and where it comes from.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    sources: Sources,
    started_at: SystemTime,
    starts: Histogram,
    execs: Histogram,
    adding: Mutex<HashMap<ExecName, f64>>,
}

/// Something of a container, by namespace and id.
pub type Lookup<T> = Box<dyn Fn(&str, &str) -> Option<T> + Send + Sync>;

/// Namespace, container, exec.
type ExecName = (String, String, String);

/// Where the numbers come from.
pub struct Sources {
    /// All containers of all namespaces.
    pub containers: Box<dyn Fn() -> Vec<Container> + Send + Sync>,
    /// The folder of libcontainer's `state.json`.
    pub state_dir: Lookup<PathBuf>,
    /// When the launch of a container began, in nanoseconds since 1970.
    pub launched: Lookup<u64>,
    /// What is wrong, for an operator.
    pub troubles: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// How many events shims keep that nobody has taken yet.
    pub unheard: Box<dyn Fn() -> u64 + Send + Sync>,
    /// The events.
    pub relay: Relay,
    /// The cgroups.
    pub usages: Usages,
    /// How often the supervisor was replaced in this process.
    pub upgrades: u32,
}

impl Metrics {
    /// Metrics of these sources. It counts latencies from now on.
    pub fn new(sources: Sources) -> Self {
        // 1 ms to 16 s.
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self(Arc::new(Shared {
            sources,
            started_at: started_at().unwrap_or_else(|error| {
                log::warn!("find out when we were started: {error}");
                SystemTime::now()
            }),
            starts: histogram(),
            execs: histogram(),
            adding: Mutex::default(),
        }))
    }

    /// Is told each event, for the latencies.
    pub fn heard(&self, envelope: &Envelope) {
        let (Some(event), Some(time)) = (envelope.event.as_ref(), envelope.timestamp.as_ref()) else { return };
        let time = seconds(time);
        let namespace = || envelope.namespace.clone();
        let mut adding = self.0.adding.lock().unwrap_or_else(PoisonError::into_inner);
        match &*envelope.topic {
            topic::TASK_START => {
                let Ok(Some(start)) = unpack::<TaskStart>(event) else { return };
                if let Some(launched) = (self.0.sources.launched)(&envelope.namespace, &start.container_id) {
                    self.0.starts.observe((time - launched as f64 / 1e9).max(0.0));
                }
            }
            topic::TASK_EXEC_ADDED => {
                let Ok(Some(added)) = unpack::<TaskExecAdded>(event) else { return };
                if adding.len() < MOST_EXECS {
                    adding.insert((namespace(), added.container_id, added.exec_id), time);
                }
            }
            topic::TASK_EXEC_STARTED => {
                let Ok(Some(started)) = unpack::<TaskExecStarted>(event) else { return };
                if let Some(added) = adding.remove(&(namespace(), started.container_id, started.exec_id)) {
                    self.0.execs.observe((time - added).max(0.0));
                }
            }
            topic::TASK_EXIT => {
                let Ok(Some(exit)) = unpack::<TaskExit>(event) else { return };
                // Of an exec that never started, or of the container and with it of all that did not.
                let ends = |(of, container, exec): &ExecName| {
                    *of == envelope.namespace
                        && *container == exit.container_id
                        && (*exec == exit.id || exit.id == exit.container_id)
                };
                adding.retain(|name, _| !ends(name));
            }
            _ => {}
        }
    }

    /// Everything, one family after the other, each written as soon as it is encoded.
    async fn scrape(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let shared = &self.0;
        let containers = (shared.sources.containers)();
        let usages = shared.sources.usages.of(&containers, &shared.sources.state_dir).await;
        let mut text = Text { buffer: String::new(), to };

        for (name, help, value) in self.totals() {
            text.number(name, help, value).await?;
        }
        let mut states: BTreeMap<(String, &str), u64> = BTreeMap::new();
        for container in &containers {
            *states
                .entry((container.namespace.clone(), state(container.phase.enum_value_or_default())))
                .or_default() += 1;
        }
        text.family("containers", "Containers by namespace and state", MetricType::Gauge, move |rows| {
            for ((namespace, state), count) in &states {
                rows.add(&[("namespace", namespace), ("state", state)], *count as f64)?;
            }
            Ok(())
        })
        .await?;
        let shims = Memory::of_all(containers.iter().map(|container| container.shim_pid));
        text.number("shims", "Processes of shims", Value::Gauge(shims.processes as f64)).await?;
        text.memory("shims_memory_bytes", "Memory of all shims together", shims).await?;
        let own = Memory::of_all([std::process::id()]);
        text.memory("supervisor_memory_bytes", "Memory of the supervisor itself", own).await?;

        text.histogram(
            "container_start_seconds",
            "From the beginning of a container's launch until its process runs",
            &shared.starts,
        )
        .await?;
        let help = "From the request for an exec until its process runs";
        text.histogram("exec_start_seconds", help, &shared.execs).await?;

        // Only names and numbers are kept while the client reads.
        let usages: Vec<_> = usages
            .into_iter()
            .map(|(index, mut usage)| {
                usage.id.clone_from(&containers[index].id);
                (containers[index].namespace.clone(), usage)
            })
            .collect();
        drop(containers);
        let usages = Arc::new(usages);
        for series in &SERIES {
            let usages = usages.clone();
            text.family(series.name, series.help, series.kind, move |rows| {
                for (namespace, usage) in usages.iter() {
                    if let Some(value) = (series.value)(usage) {
                        rows.add(&[("namespace", namespace), ("id", &usage.id)], value)?;
                    }
                }
                Ok(())
            })
            .await?;
        }
        text.end().await
    }

    /// What is one number each.
    fn totals(&self) -> [(&'static str, &'static str, Value); 10] {
        let counts = self.0.sources.relay.counts();
        let troubles = (self.0.sources.troubles)().len();
        let started_at = self.0.started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (counter, gauge) = (|n: u64| Value::Counter(n as f64), |n: u64| Value::Gauge(n as f64));
        [
            // Its changes are restarts, as Prometheus' changes() counts them: an upgrade goes on in the same process.
            (
                "supervisor_start_time_seconds",
                "When the supervisor's process started, since 1970",
                Value::Gauge(started_at),
            ),
            (
                "supervisor_upgrades",
                "How often the supervisor's process went on as another binary",
                counter(self.0.sources.upgrades.into()),
            ),
            ("troubles", "What `dunnage ps` warns of: a full disk, what could not be read", gauge(troubles as u64)),
            ("events", "Events relayed since the supervisor started", counter(counts.relayed)),
            ("event_last_number", "The number of the last event", gauge(counts.last)),
            ("event_subscribers", "Clients subscribed to events", gauge(counts.subscribers)),
            (
                "events_kept_by_shims",
                "Events that shims keep until they are taken: many, if the journal's disk is full",
                gauge((self.0.sources.unheard)()),
            ),
            ("event_subscriber_lag", "Events that the last of the subscribers is behind", gauge(counts.pending)),
            ("event_subscribers_cut_off", "Subscribers cut off, having taken nothing", counter(counts.cut_off)),
            ("journal_bytes", "Bytes of the event journal on disk", gauge(counts.journal)),
        ]
    }
}

/// One number of each container.
struct Series {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&Usage) -> Option<f64>,
}

/// A `Series` for each line. Counters get their `_total` from the encoder.
macro_rules! series {
    ($($kind:ident $name:literal $help:literal |$usage:ident| $value:expr;)*) => {
        [$(Series { name: $name, help: $help, kind: MetricType::$kind, value: |$usage| $value }),*]
    };
}

const SERIES: [Series; 20] = series! {
    Counter "container_cpu_seconds" "Processor time" |u| nanos(u.cpu_total);
    Counter "container_cpu_user_seconds" "Processor time in user space" |u| nanos(u.cpu_user);
    Counter "container_cpu_system_seconds" "Processor time in the kernel" |u| nanos(u.cpu_system);
    Counter "container_cpu_throttled_seconds" "Processor time withheld by the limit" |u| nanos(u.cpu_throttled);
    Gauge "container_memory_bytes" "Memory, file cache included" |u| Some(u.memory as f64);
    Gauge "container_memory_working_set_bytes" "Memory without the file cache that can go first"
        |u| Some(u.memory_working_set as f64);
    Gauge "container_memory_limit_bytes" "Memory there may be; none if there is no limit" |u| positive(u.memory_limit);
    Gauge "container_memory_swap_bytes" "Swap" |u| Some(u.memory_swap as f64);
    Counter "container_oom_kills" "Processes the kernel killed for memory" |u| Some(u.oom_kills as f64);
    Gauge "container_pids" "Processes and threads" |u| Some(u.pids as f64);
    Gauge "container_pids_limit" "Processes and threads there may be; none if there is no limit" |u| positive(u.pids_limit);
    Counter "container_io_read_bytes" "Bytes read from block devices" |u| Some(u.io_read_bytes as f64);
    Counter "container_io_written_bytes" "Bytes written to block devices" |u| Some(u.io_write_bytes as f64);
    Counter "container_io_reads" "Reads from block devices" |u| Some(u.io_reads as f64);
    Counter "container_io_writes" "Writes to block devices" |u| Some(u.io_writes as f64);
    Counter "container_pressure_cpu_waiting_seconds" "Time in which some process waited for a processor"
        |u| u.cpu_some.map(micros);
    Counter "container_pressure_memory_waiting_seconds" "Time in which some process waited for memory"
        |u| u.memory_some.map(micros);
    Counter "container_pressure_memory_stalled_seconds" "Time in which all processes waited for memory"
        |u| u.memory_full.map(micros);
    Counter "container_pressure_io_waiting_seconds" "Time in which some process waited for a device"
        |u| u.io_some.map(micros);
    Counter "container_pressure_io_stalled_seconds" "Time in which all processes waited for a device"
        |u| u.io_full.map(micros);
};

fn nanos(value: u64) -> Option<f64> {
    Some(value as f64 / 1e9)
}

fn micros(value: u64) -> f64 {
    value as f64 / 1e6
}

fn positive(value: u64) -> Option<f64> {
    (value > 0).then_some(value as f64)
}

/// When this process was started, whatever program it was then.
fn started_at() -> io::Result<SystemTime> {
    let started = Init::of(getpid()).map_err(io::Error::other)?.start_time;
    // Both since the machine booted, the one in ticks (proc_pid_stat(5)).
    let ticks = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    let ago = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?)
        .saturating_sub(Duration::from_millis(started * 1000 / ticks));
    Ok(SystemTime::now() - ago)
}

fn seconds(time: &Timestamp) -> f64 {
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

/// The word for a phase, as programs read it: here, and in what `dunnage` prints for them.
pub fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::UNKNOWN => "unknown",
        Phase::LAUNCHING => "launching",
        Phase::CREATED => "created",
        Phase::RUNNING => "running",
        Phase::PAUSED => "paused",
        Phase::STOPPED => "stopped",
        Phase::LOST => "lost",
    }
}

/// The memory of some processes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    processes: u64,
    resident: u64,
    /// Of it what is shared with no file: what the process costs.
    anonymous: u64,
}

impl Memory {
    /// As proc_pid_statm(5) has it. One that is gone counts nothing; one given twice, as by the containers of a pod, once.
    fn of_all(pids: impl IntoIterator<Item = u32>) -> Self {
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
        let mut pids: Vec<u32> = pids.into_iter().filter(|pid| *pid != 0).collect();
        pids.sort_unstable();
        pids.dedup();
        let mut sum = Self::default();
        for pid in pids {
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/statm")) else { continue };
            let mut pages = text.split_whitespace().map(|field| field.parse().unwrap_or(0u64));
            let (Some(_), Some(resident), Some(shared)) = (pages.next(), pages.next(), pages.next()) else { continue };
            sum.processes += 1;
            sum.resident += resident * page.unwrap_or(4096);
            sum.anonymous += resident.saturating_sub(shared) * page.unwrap_or(4096);
        }
        sum
    }
}

#[derive(Clone, Copy)]
enum Value {
    Counter(f64),
    Gauge(f64),
}

/// Encodes families and writes each.
struct Text<'w, W> {
    buffer: String,
    to: &'w mut W,
}

impl<W: AsyncWrite + Unpin> Text<'_, W> {
    async fn number(&mut self, name: &'static str, help: &'static str, value: Value) -> io::Result<()> {
        let (kind, value) = match value {
            Value::Counter(value) => (MetricType::Counter, value),
            Value::Gauge(value) => (MetricType::Gauge, value),
        };
        self.family(name, help, kind, move |rows| rows.add(&[], value)).await
    }

    async fn memory(&mut self, name: &'static str, help: &'static str, memory: Memory) -> io::Result<()> {
        self.family(name, help, MetricType::Gauge, move |rows| {
            rows.add(&[("kind", "resident")], memory.resident as f64)?;
            rows.add(&[("kind", "anonymous")], memory.anonymous as f64)
        })
        .await
    }

    async fn histogram(&mut self, name: &'static str, help: &'static str, histogram: &Histogram) -> io::Result<()> {
        let histogram = histogram.clone();
        self.encode(name, help, MetricType::Histogram, move |metric| histogram.encode(metric)).await
    }

    async fn family(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        fill: impl Fn(&mut Rows<'_>) -> fmt::Result + Send + Sync + 'static,
    ) -> io::Result<()> {
        self.encode(name, help, kind, move |metric| fill(&mut Rows { metric, kind })).await
    }

    async fn encode(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        encode: impl Fn(MetricEncoder<'_>) -> fmt::Result + Send + Sync + 'static,
    ) -> io::Result<()> {
        let mut registry = Registry::with_prefix("dunnage");
        registry.register_collector(Box::new(Collect(move |mut encoder: DescriptorEncoder<'_>| {
            encode(encoder.encode_descriptor(name, help, None, kind)?)
        })));
        self.buffer.clear();
        text::encode_registry(&mut self.buffer, &registry).map_err(io::Error::other)?;
        self.to.write_all(self.buffer.as_bytes()).await
    }

    async fn end(mut self) -> io::Result<()> {
        self.buffer.clear();
        text::encode_eof(&mut self.buffer).map_err(io::Error::other)?;
        self.to.write_all(self.buffer.as_bytes()).await
    }
}

/// The numbers of one family.
struct Rows<'e> {
    metric: MetricEncoder<'e>,
    kind: MetricType,
}

impl Rows<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: f64) -> fmt::Result {
        let encode = |row: &mut MetricEncoder<'_>| match self.kind {
            MetricType::Counter => row.encode_counter::<NoLabelSet, _, f64>(&value, None),
            _ => row.encode_gauge(&value),
        };
        // An empty pair of braces is no error, but odd.
        if labels.is_empty() { encode(&mut self.metric) } else { encode(&mut self.metric.encode_family(&labels)?) }
    }
}

/// What encodes one family, as the registry wants it.
struct Collect<F>(F);

impl<F> fmt::Debug for Collect<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collect")
    }
}

impl<F: Fn(DescriptorEncoder<'_>) -> fmt::Result + Send + Sync + 'static> Collector for Collect<F> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(encoder)
    }
}
