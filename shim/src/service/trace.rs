//! Dunnage's own service of a shim.

use async_trait::async_trait;
use runtime_v2_api::{
    shim::{TraceRequest, TraceResponse},
    shim_ttrpc::Shim,
};
use ttrpc::r#async::TtrpcContext;

use super::{Call, Calls};

/// Tells how a container was started.
pub(crate) struct ShimService(pub(crate) Calls);

#[async_trait]
impl Shim for ShimService {
    async fn trace(&self, _: &TtrpcContext, request: TraceRequest) -> ttrpc::Result<TraceResponse> {
        self.0.ask(Call::Trace, request).await
    }
}
