//! Command line → exit code.

fn main() -> std::process::ExitCode {
    emostream::cli::run()
}
