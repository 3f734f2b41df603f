//! `meshctl`: see the library's room `cli`.
use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let code = mesh_agent::cli::run(std::env::args_os(), &mut io::stdout().lock(), &mut io::stderr().lock());
    ExitCode::from(code)
}
