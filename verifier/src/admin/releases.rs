//! Releases: what operators list and give back.

use countersign_wire::id::{HostId, RunId};
use serde_json::{Value, json};

use super::hosts::find_host;
use crate::error::Error;
use crate::service::Service;

pub(super) async fn list(service: &Service, host: Option<&str>, limit: u32) -> Result<Value, Error> {
    Ok(json!({"releases": service.releases(named(service, host).await?, limit).await?}))
}

async fn named(service: &Service, host: Option<&str>) -> Result<Option<HostId>, Error> {
    match host {
        Some(text) => Ok(Some(find_host(service, text).await?.snapshot.host)),
        None => Ok(None),
    }
}

pub(super) async fn refund(service: &Service, run: &RunId, host: Option<&str>, actor: &str) -> Result<Value, Error> {
    service.refund(run, named(service, host).await?, actor).await?;
    Ok(json!({"refunded": run}))
}
