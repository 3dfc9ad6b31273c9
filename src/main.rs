//! The `ebsfs` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ebsfs::cli::main()
}
