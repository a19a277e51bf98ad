//! Calls on their way through, and how they end when the supervisor does: what is short is let finish; who waits for
//! something to happen one day is told at once, and asks the next supervisor.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use protobuf::MessageField;
use tokio::sync::watch;
use ttrpc::{
    Code, Request, Response,
    r#async::{MethodHandler, Service, StreamHandler, StreamInner, TtrpcContext},
    get_status,
};

/// The methods that last as long as what they wait for.
const LONG: [&str; 1] = ["Wait"];

/// Says to all calls that the supervisor ends. Dropped, it does so too.
#[derive(Debug)]
pub(crate) struct Traffic(watch::Sender<bool>);

impl Traffic {
    /// Wraps services, whose calls then heed this.
    pub(crate) fn through(services: HashMap<String, Service>) -> (Self, HashMap<String, Service>) {
        let traffic = Self(watch::Sender::new(false));
        let wrapped = services.into_iter().map(|(name, service)| (name, traffic.wrap(service))).collect();
        (traffic, wrapped)
    }

    /// Ends what is long, and lets nothing more begin.
    pub(crate) fn close(&self) {
        self.0.send_replace(true);
    }

    fn wrap(&self, service: Service) -> Service {
        let methods = service.methods.into_iter().map(|(name, inner)| {
            let long = LONG.contains(&&*name);
            let heeding = Heeding { inner, long, closed: self.0.subscribe() };
            (name, Box::new(heeding) as Box<dyn MethodHandler + Send + Sync>)
        });
        let streams = service.streams.into_iter().map(|(name, inner)| {
            let heeding = Heeding { inner, long: true, closed: self.0.subscribe() };
            (name, Arc::new(heeding) as Arc<dyn StreamHandler + Send + Sync>)
        });
        Service { methods: methods.collect(), streams: streams.collect() }
    }
}

struct Heeding<H> {
    inner: H,
    long: bool,
    closed: watch::Receiver<bool>,
}

impl<H> Heeding<H> {
    /// None if the end of the supervisor is the end of the call.
    async fn heed<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let mut closed = self.closed.clone();
        if *closed.borrow() {
            return None;
        }
        if !self.long {
            return Some(call.await);
        }
        tokio::select! {
            answer = call => Some(answer),
            // An error means that the sender is gone, which says the same.
            _ = closed.wait_for(|closed| *closed) => None,
        }
    }
}

/// As an answer: of an error that a handler returns, ttrpc does not tell the code.
fn ended() -> Response {
    let status = get_status(Code::UNAVAILABLE, "the supervisor is going away; ask again when it is back");
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

    fn method(long: bool, traffic: &Traffic) -> Heeding<()> {
        Heeding { inner: (), long, closed: traffic.0.subscribe() }
    }

    #[tokio::test]
    async fn what_is_long_ends_at_once_and_what_is_short_is_let_finish() {
        let traffic = Traffic(watch::Sender::new(false));
        let (wait, state) = (method(true, &traffic), method(false, &traffic));
        let (done, answer) = tokio::sync::oneshot::channel();
        let short = state.heed(async { answer.await.unwrap() });
        let long = wait.heed(pending::<()>());
        let close = async {
            traffic.close();
            tokio::task::yield_now().await;
            done.send(7).unwrap();
        };
        let all = async { tokio::join!(short, long, close) };
        let (short, long, ()) = tokio::time::timeout(Duration::from_secs(10), all).await.expect("must not hang");
        assert_eq!((short, long), (Some(7), None));
        assert_eq!(state.heed(ready(())).await, None, "nothing begins any more");
    }
}
