use super::args::{ConfigCommand, MountArgs};
use super::output::out;
use crate::config::{self, Partial, Settings};
use crate::node;

/// `skein config`: what `mount` would run with.
pub(super) fn run(command: ConfigCommand) -> anyhow::Result<i32> {
    match command {
        ConfigCommand::Check(args) => {
            let settings = Settings::resolve(merged(*args)?, &node::hostname())?;
            out(&format!("ok: node {} is a {}\n", settings.name, settings.role))?;
        }
        ConfigCommand::Print(args) => {
            let partial = merged(*args)?;
            // What could not be used is not worth printing.
            let settings = Settings::resolve(partial.clone(), &node::hostname())?;
            let named = Partial { name: Some(settings.name.to_string()), ..partial };
            out(&toml::to_string_pretty(&named)?)?;
        }
    }
    Ok(0)
}

/// Options over environment over file.
fn merged(args: MountArgs) -> anyhow::Result<Partial> {
    let below = match &args.config {
        Some(path) => config::load(path)?,
        None => Partial::default(),
    };
    Ok(args.into_partial().or(below))
}
