//! What a role takes from outside: of everybody who connects, and of a job.

use std::time::Duration;

/// The longest single argument, and the longest variable with its name and the `=`,
/// in bytes: the kernel takes 32 pages with the NUL at the end (MAX_ARG_STRLEN,
/// execve(2)).
const LONGEST_STRING: usize = 128 * 1024 - 1;

/// What a role takes from outside before it knows whether it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// From the connection to the end of the TLS handshake.
    pub handshake: Duration,
    /// From there to the end of the first request's headers, and likewise for
    /// each further one; on an HTTP/2 connection that was served, twice this.
    pub headers: Duration,
    /// The most bytes of the headers of a request.
    pub header_bytes: u32,
    /// The most requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// The most connections from one address that have asked for something.
    pub connections: usize,
    /// The most connections from one address that have not: beyond, the oldest goes.
    pub silent: usize,
    /// The most connections of a server from all addresses together: beyond, the
    /// oldest goes that has asked for nothing.
    pub total_connections: usize,
    /// The most arguments of a job.
    pub args: usize,
    /// The most bytes of a job's arguments and environment together.
    pub arg_bytes: usize,
    /// The most readers at once of the output of one worker.
    pub followers: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            headers: Duration::from_secs(10),
            header_bytes: 16 * 1024,
            streams: 64,
            connections: 1024,
            silent: 128,
            total_connections: 8192,
            args: 1000,
            arg_bytes: 256 * 1024,
            followers: 1024,
        }
    }
}

impl Bounds {
    /// Refuses a job with too many arguments, or too much of them and of an
    /// environment, in one line.
    pub fn check_args<'a>(
        &self,
        args: &[String],
        env: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<(), String> {
        if args.len() > self.args {
            let (count, most) = (args.len(), self.args);
            return Err(format!(
                "the job has {count} arguments, and {most} are taken at most"
            ));
        }
        let mut bytes = 0;
        for (number, arg) in (1..).zip(args) {
            if arg.len() > LONGEST_STRING {
                let length = arg.len();
                return Err(format!(
                    "argument {number} has {length} bytes, and the kernel takes \
                     {LONGEST_STRING} at most: put it into a file"
                ));
            }
            bytes += arg.len();
        }
        for (name, value) in env {
            let length = name.len() + 1 + value.len();
            if length > LONGEST_STRING {
                let start: String = name.chars().take(64).collect();
                return Err(format!(
                    "the variable {start} has {length} bytes with its name, and the kernel \
                     takes {LONGEST_STRING} at most: put its value into a file"
                ));
            }
            bytes += name.len() + value.len();
        }
        if bytes > self.arg_bytes {
            let most = self.arg_bytes;
            return Err(format!(
                "arguments and environment of the job have {bytes} bytes, and {most} are taken \
                 at most"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_string_that_the_kernel_does_not_take_is_refused_by_name() {
        let bounds = Bounds::default();
        let longest = "x".repeat(LONGEST_STRING);
        let check = |arg: &str, value: &str| {
            let env = BTreeMap::from([("A".to_owned(), value.to_owned())]);
            bounds.check_args(&["-c".to_owned(), arg.to_owned()], &env)
        };
        assert_eq!(check(&longest, ""), Ok(()));
        assert_eq!(check("", &longest[2..]), Ok(()));
        // Just these the kernel takes, and no more.
        let run = |arg: &str, value: &str| {
            let command = std::process::Command::new("true")
                .arg(arg)
                .env("A", value)
                .status();
            command.map(|status| status.success()).unwrap_or(false)
        };
        assert!(run(&longest, "") && run("", &longest[2..]));
        let longer = format!("{longest}x");
        assert!(!run(&longer, "") && !run("", &longest[1..]));
        let refused = check(&longer, "").unwrap_err();
        assert!(
            refused.starts_with("argument 2 has 131072 bytes"),
            "{refused}"
        );
        let refused = check("", &longest[1..]).unwrap_err();
        assert!(
            refused.starts_with("the variable A has 131072 bytes"),
            "{refused}"
        );
    }

    #[test]
    fn arguments_and_environment_are_counted_together() {
        let bounds = Bounds {
            args: 2,
            arg_bytes: 8,
            ..Bounds::default()
        };
        let env = |value: &str| BTreeMap::from([("AB".to_owned(), value.to_owned())]);
        let check = |args: &[&str], value| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            bounds.check_args(&args, &env(value))
        };
        assert_eq!(check(&["abc", ""], "def"), Ok(()));
        let refused = check(&["", "", ""], "").unwrap_err();
        assert!(refused.contains("3 arguments, and 2 are"), "{refused}");
        for (args, value) in [(&["abcd"][..], "def"), (&["abc"], "defg")] {
            let refused = check(args, value).unwrap_err();
            assert!(refused.contains("9 bytes, and 8 are"), "{refused}");
        }
    }
}
