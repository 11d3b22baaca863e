//! Parses the command line, runs the verb, and turns what came of it into an
//! exit code; nothing else ends the process.

use std::process::ExitCode;

use jobctl::{cmd, roles};

fn main() -> ExitCode {
    // A shim is to be small and to have one thread: no runtime, no flags.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|verb| verb == "shim")
    {
        return roles::shim::main();
    }
    let cli = match cmd::Cli::read() {
        Ok(cli) => cli,
        Err(message) => {
            cmd::show_usage(&message);
            return code(message.exit_code());
        }
    };
    roles::shim::hear_signals();
    cli.prepare();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return ExitCode::from(cmd::report(&error.into(), cmd::Codes::Jobctl)),
    };
    let code = runtime.block_on(cmd::run(cli));
    // A write to a pipe that nobody drains may never return.
    runtime.shutdown_background();
    ExitCode::from(code)
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
