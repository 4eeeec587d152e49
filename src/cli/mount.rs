use crate::cli::args::MountArgs;
use crate::config::{self, Partial, Settings};
use crate::node;
use crate::telemetry::{Exposition, init_log, send_traces};

/// `skein mount`: runs a node until it is told to end.
pub(super) async fn run(args: Box<MountArgs>) -> anyhow::Result<i32> {
    let below = match &args.config {
        Some(path) => config::load(path)?,
        None => Partial::default(),
    };
    let partial = args.into_partial().or(below);
    init_log(partial.log_format.unwrap_or_default()).map_err(anyhow::Error::msg)?;
    let settings = Settings::resolve(partial, &node::hostname())?;
    Exposition::install();
    let traces = &settings.traces;
    let _traces = match traces.endpoint.is_empty() {
        true => None,
        false => Some(
            send_traces(&traces.endpoint, traces.share, settings.name.as_str())
                .map_err(anyhow::Error::msg)?,
        ),
    };
    Ok(node::run(settings).await?)
}
