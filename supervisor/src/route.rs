//! Requests for a container, to its shim: the Task service in both versions, and the shim's own. Of a request little is
//! looked at but the id, which is field 1 in all of them; it goes on byte for byte, and so does the answer.

use std::collections::HashMap;

use async_trait::async_trait;
use protobuf::CodedInputStream;
use runtime_v2_api::supervisor::Phase;
use ttrpc::{
    Request, Response,
    r#async::{MethodHandler, Service, TtrpcContext},
};

use crate::{
    book::{Book, Name, Stage},
    fault::Fault,
    service::namespace,
    shims::Shims,
};

const TASK: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];
const TASK_METHODS: [&str; 17] = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
];
const SHIM: &str = "dunnage.shim.v1.Shim";
const SHIM_METHODS: [&str; 1] = ["Trace"];

/// The services that are routed.
pub(crate) fn services(book: &Book, shims: &Shims) -> HashMap<String, Service> {
    let service = |methods: &[&str]| {
        let handler = || Box::new(Route { book: book.clone(), shims: shims.clone() });
        let methods =
            methods.iter().map(|&method| (method.to_owned(), handler() as Box<dyn MethodHandler + Send + Sync>));
        Service { methods: methods.collect(), streams: HashMap::new() }
    };
    let tasks = TASK.into_iter().map(|name| (name.to_owned(), service(&TASK_METHODS)));
    tasks.chain([(SHIM.to_owned(), service(&SHIM_METHODS))]).collect()
}

/// The way to the shims.
struct Route {
    book: Book,
    shims: Shims,
}

#[async_trait]
impl MethodHandler for Route {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        // An error here would reach the client without its code.
        Ok(self.forward(&context, request).await.unwrap_or_else(|fault| {
            let status = protobuf::MessageField::some(fault.status());
            Response { status, ..Default::default() }
        }))
    }
}

impl Route {
    async fn forward(&self, context: &TtrpcContext, request: Request) -> Result<Response, Fault> {
        let text = |field| {
            text(&request.payload, field)
                .map_err(|error| Fault::Invalid(format!("find the id in a request for {}: {error}", request.method)))
        };
        let id = text(ID)?;
        let becomes = match &*request.method {
            "Start" if text(EXEC_ID)?.is_empty() => Some(Phase::RUNNING),
            "Pause" => Some(Phase::PAUSED),
            "Resume" => Some(Phase::RUNNING),
            _ => None,
        };
        let name = Name::new(namespace(context), &id).map_err(Fault::Invalid)?;
        let Some(stage) = self.book.look(&name, |entry| entry.stage.clone()) else {
            return Err(Fault::NotFound(name.to_string()));
        };
        match stage {
            Stage::Lost(reason) => Err(Fault::Precondition(format!("container {name} is lost: {reason}"))),
            Stage::Launching => Err(Fault::Unavailable(format!("container {name} is not launched yet; try again"))),
            Stage::Live | Stage::Removing => {
                let answer = self.shims.request(&name, request).await?;
                if let Some(phase) = becomes {
                    self.book.became(&name, phase);
                }
                Ok(answer)
            }
        }
    }
}

/// The fields of requests that are looked at.
const ID: u32 = 1;
const EXEC_ID: u32 = 2;

/// A field of a message, a string. Where it is repeated, the last counts, as protobuf has it.
fn text(message: &[u8], field: u32) -> protobuf::Result<String> {
    const LENGTH_DELIMITED: u32 = 2;
    let mut input = CodedInputStream::from_bytes(message);
    let mut text = String::new();
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        if tag == field << 3 | LENGTH_DELIMITED {
            text = input.read_string()?;
        } else {
            protobuf::rt::skip_field_for_tag(tag, &mut input)?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protobuf::Message as _;
    use runtime_v2_api::task;

    use super::*;

    #[test]
    fn the_id_is_found_wherever_it_stands() {
        let request = task::ResizePtyRequest {
            id: "web-1".into(),
            exec_id: "x".into(),
            width: 80,
            height: 25,
            ..Default::default()
        };
        let bytes = request.write_to_bytes().unwrap();
        assert_eq!((text(&bytes, ID).unwrap(), text(&bytes, EXEC_ID).unwrap()), ("web-1".into(), "x".into()));
        // Merged, as protobuf allows it: another id, after other fields.
        let last = task::ResizePtyRequest { id: "web-2".into(), ..Default::default() }.write_to_bytes().unwrap();
        assert_eq!(text(&[bytes.clone(), last].concat(), ID).unwrap(), "web-2");
        assert_eq!(text(&[], ID).unwrap(), "");
        assert!(text(&bytes[..3], ID).is_err());
        assert!(text(&[0x0a, 1, 0xff], ID).is_err(), "not UTF-8");
    }

    #[test]
    fn every_method_of_the_contract_is_routed() {
        struct Nobody;
        impl runtime_v2_api::task_v2::Task for Nobody {}
        let theirs = runtime_v2_api::task_services(Arc::new(Nobody));
        for name in TASK {
            let mut methods: Vec<&str> = theirs[name].methods.keys().map(String::as_str).collect();
            let mut ours = TASK_METHODS;
            methods.sort_unstable();
            ours.sort_unstable();
            assert_eq!(methods, ours);
        }
    }
}
