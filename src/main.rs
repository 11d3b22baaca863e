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
    let as_init = cli.is_role() && cmd::init::is_first_process();
    let mut builder = match as_init {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let failed = |error| ExitCode::from(cmd::report(&error, cmd::Codes::Jobctl));
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(error.into()),
    };
    if as_init {
        return match runtime.block_on(cmd::init::run()) {
            Ok(code) => ExitCode::from(code),
            Err(error) => failed(error),
        };
    }
    cli.prepare();
    let code = runtime.block_on(cmd::run(cli));
    // A write to a pipe that nobody drains may never return.
    runtime.shutdown_background();
    ExitCode::from(code)
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
