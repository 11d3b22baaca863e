//! Parses the command line, runs the verb, and turns what came of it into an
//! exit code; nothing else ends the process.

use std::process::ExitCode;

use clap::Parser as _;
use jobctl::{cmd, roles};

fn main() -> ExitCode {
    // A shim is to be small and to have one thread: no runtime, no flags.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|verb| verb == "shim")
    {
        return roles::shim::main();
    }
    let cli = match cmd::Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // Fails only where nobody reads it.
            message.print().unwrap_or_default();
            return code(message.exit_code());
        }
    };
    cli.prepare();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(cmd::report(&error, cmd::Codes::Jobctl)),
    }
}

fn run(cli: cmd::Cli) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(cmd::run(cli));
    // A write to a pipe that nobody drains may never return.
    runtime.shutdown_background();
    outcome
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
