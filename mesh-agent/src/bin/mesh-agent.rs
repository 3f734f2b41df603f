//! `mesh-agent`: see the library's rooms `config` (the command line) and `agent` (the wiring).
use std::io::Write;
use std::process::ExitCode;

use mesh_agent::config::{self, EXIT_FAILURE, Task};
use mesh_agent::{agent, kernel};

fn main() -> ExitCode {
    let task = match config::read(std::env::args_os()) {
        Ok(task) => task,
        Err(answer) => {
            let _ = if answer.is_failure() {
                writeln!(std::io::stderr(), "{answer}")
            } else {
                writeln!(std::io::stdout(), "{answer}")
            };
            return ExitCode::from(answer.exit_code());
        }
    };
    match run(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Node(settings) => agent::node::run(&settings)?,
        Task::Uninstall(settings) => kernel::load::uninstall(&settings.pin_dir)?,
        Task::Control(settings) => agent::control::run(&settings)?,
        Task::RotateRoot(settings) => {
            let phase = agent::control::rotate_root(&settings)?;
            writeln!(std::io::stdout(), "{phase}")?;
        }
        Task::Started(file) => anyhow::ensure!(file.exists(), "not started: {} is not there", file.display()),
    }
    Ok(())
}
