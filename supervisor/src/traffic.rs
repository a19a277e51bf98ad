//! Calls on their way through, and how they end when the supervisor does: what is short is let finish; who waits for
//! something to happen one day is told at once, and asks the next supervisor. When it is replaced in place, only streams
//! end; the successor goes on with the rest (`carry.rs`).

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use protobuf::MessageField;
use tokio::sync::watch;
use ttrpc::{
    Code, Request, Response,
    r#async::{MethodHandler, Service, StreamHandler, StreamInner, TtrpcContext},
    get_status,
};

/// The methods that last as long as what they wait for: the end of a process, or of us.
pub(crate) const LONG: [&str; 2] = ["Wait", "Upgrade"];
/// How calls that are ended so are told.
pub(crate) const GOING: &str = "the supervisor is going away; ask again when it is back";

/// Says to all calls that the supervisor ends. Dropped, it does so too.
#[derive(Debug)]
pub(crate) struct Traffic(watch::Sender<Closed>);

/// For what there is no way through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
enum Closed {
    #[default]
    Nothing,
    Streams,
    All,
}

/// How a call is let end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Short,
    Long,
    Stream,
}

impl Traffic {
    /// Wraps services, whose calls then heed this.
    pub(crate) fn through(services: HashMap<String, Service>) -> (Self, HashMap<String, Service>) {
        let traffic = Self(watch::Sender::default());
        let wrapped = services.into_iter().map(|(name, service)| (name, traffic.wrap(service))).collect();
        (traffic, wrapped)
    }

    /// Ends what is long, and lets nothing more begin.
    pub(crate) fn close(&self) {
        self.0.send_replace(Closed::All);
    }

    /// Ends the streams, and lets none begin.
    pub(crate) fn close_streams(&self) {
        self.0.send_replace(Closed::Streams);
    }

    /// Lets everything begin again.
    pub(crate) fn open(&self) {
        self.0.send_replace(Closed::Nothing);
    }

    fn wrap(&self, service: Service) -> Service {
        let methods = service.methods.into_iter().map(|(name, inner)| {
            let kind = if LONG.contains(&&*name) { Kind::Long } else { Kind::Short };
            let heeding = Heeding { inner, kind, closed: self.0.subscribe() };
            (name, Box::new(heeding) as Box<dyn MethodHandler + Send + Sync>)
        });
        let streams = service.streams.into_iter().map(|(name, inner)| {
            let heeding = Heeding { inner, kind: Kind::Stream, closed: self.0.subscribe() };
            (name, Arc::new(heeding) as Arc<dyn StreamHandler + Send + Sync>)
        });
        Service { methods: methods.collect(), streams: streams.collect() }
    }
}

struct Heeding<H> {
    inner: H,
    kind: Kind,
    closed: watch::Receiver<Closed>,
}

impl<H> Heeding<H> {
    /// None if the end of the supervisor is the end of the call.
    async fn heed<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let mut closed = self.closed.clone();
        let ends = if self.kind == Kind::Stream { Closed::Streams } else { Closed::All };
        if *closed.borrow() >= ends {
            return None;
        }
        if self.kind == Kind::Short {
            return Some(call.await);
        }
        tokio::select! {
            answer = call => Some(answer),
            // An error means that the sender is gone, which says the same.
            _ = closed.wait_for(|closed| *closed >= ends) => None,
        }
    }
}

/// As an answer: of an error that a handler returns, ttrpc does not tell the code.
fn ended() -> Response {
    let status = get_status(Code::UNAVAILABLE, GOING);
    Response { status: MessageField::some(status), ..Response::default() }
}

#[async_trait]
impl MethodHandler for Heeding<Box<dyn MethodHandler + Send + Sync>> {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        self.heed(self.inner.handler(context, request)).await.unwrap_or_else(|| Ok(ended()))
    }
}

#[async_trait]
impl StreamHandler for Heeding<Arc<dyn StreamHandler + Send + Sync>> {
    async fn handler(&self, context: TtrpcContext, stream: StreamInner) -> ttrpc::Result<Option<Response>> {
        self.heed(self.inner.handler(context, stream)).await.unwrap_or_else(|| Ok(Some(ended())))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        time::Duration,
    };

    use super::*;

    fn method(kind: Kind, traffic: &Traffic) -> Heeding<()> {
        Heeding { inner: (), kind, closed: traffic.0.subscribe() }
    }

    #[tokio::test]
    async fn what_is_long_ends_at_once_and_what_is_short_is_let_finish() {
        let traffic = Traffic(watch::Sender::default());
        let (wait, state, follow) =
            (method(Kind::Long, &traffic), method(Kind::Short, &traffic), method(Kind::Stream, &traffic));
        let (done, answer) = tokio::sync::oneshot::channel();
        let short = state.heed(async { answer.await.unwrap() });
        let (long, stream) = (wait.heed(pending::<()>()), follow.heed(pending::<()>()));
        let close = async {
            traffic.close();
            tokio::task::yield_now().await;
            done.send(7).unwrap();
        };
        let all = async { tokio::join!(short, long, stream, close) };
        let (short, long, stream, ()) =
            tokio::time::timeout(Duration::from_secs(10), all).await.expect("must not hang");
        assert_eq!((short, long, stream), (Some(7), None, None));
        assert_eq!(state.heed(ready(())).await, None, "nothing begins any more");
    }

    #[tokio::test]
    async fn an_upgrade_ends_only_streams() {
        let traffic = Traffic(watch::Sender::default());
        let (wait, follow) = (method(Kind::Long, &traffic), method(Kind::Stream, &traffic));
        traffic.close_streams();
        assert_eq!(follow.heed(ready(())).await, None);
        assert_eq!(wait.heed(ready(())).await, Some(()));
        traffic.open();
        assert_eq!(follow.heed(ready(())).await, Some(()));
    }
}
