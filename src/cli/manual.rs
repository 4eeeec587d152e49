use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::args::Cli;
use super::output::out;

/// `skein completions`: the script with which a shell completes the words of the command line.
pub(super) fn completions(shell: Shell) -> anyhow::Result<i32> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "skein", &mut script);
    out(&String::from_utf8(script).context("the script is no text")?)?;
    Ok(0)
}

/// `skein man`: the manual pages, skein(1) and one of each command, as troff below `dir`.
pub(super) fn pages(dir: &Path) -> anyhow::Result<i32> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write_pages(&command, "skein", dir)?;
    Ok(0)
}

fn write_pages(command: &Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .render(&mut page)
        .with_context(|| format!("writing the page of {name}"))?;
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page).with_context(|| format!("writing {}", path.display()))?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below, &format!("{name}-{}", below.get_name()), dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        pages(dir.path()).unwrap();
        let mut commands = vec![(Cli::command(), "skein".to_owned())];
        let mut expected = 0;
        while let Some((command, name)) = commands.pop() {
            let page = std::fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
            assert!(page.starts_with(".ie") && page.contains(".SH NAME"), "{name}: {page}");
            expected += 1;
            for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
                commands.push((below.clone(), format!("{name}-{}", below.get_name())));
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), expected);
    }
}
