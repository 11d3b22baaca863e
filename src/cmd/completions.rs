//! `jobctl completions`

use clap::CommandFactory as _;

use super::{Cli, DONE};
use crate::client::render;

const EXAMPLES: &str = "\
Examples:
  jobctl completions bash > ~/.local/share/bash-completion/completions/jobctl
  jobctl completions zsh > \"${fpath[1]}/_jobctl\"
  jobctl completions fish > ~/.config/fish/completions/jobctl.fish";

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    /// bash, zsh or fish
    #[arg(hide_possible_values = true)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "jobctl", &mut script);
    render::data(&String::from_utf8(script)?)?;
    Ok(DONE)
}
