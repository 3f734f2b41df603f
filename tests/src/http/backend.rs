//! A server of ours in a pod, and everything that it tells.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use serde_json::Value;

use crate::lab::{Lab, Running, program};
use crate::wait::eventually;

/// The server. It ends with this.
#[derive(Debug)]
pub struct Backend {
    pod: String,
    told: Arc<Mutex<Vec<Value>>>,
    _running: Running,
}

impl Backend {
    /// Serves in a pod on these ports, and waits until it listens.
    #[track_caller]
    pub fn start(lab: &Lab, pod: &str, ports: &[u16]) -> Self {
        let program = program("weft-http");
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let mut words = vec![program.to_str().expect("the path is text"), "serve"];
        words.extend(ports.iter().map(String::as_str));
        let mut command = lab.command(pod, &words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut running = Running(command.spawn().expect("`lab exec` starts"));
        let output = running.0.stdout.take().expect("output is piped");
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                heard.lock().push(serde_json::from_str(&line).expect("the server tells in JSON"));
            }
        });
        let backend = Self { pod: pod.to_owned(), told, _running: running };
        eventually(&format!("{pod} listens"), || {
            backend.told().iter().any(|line| line["listening"].is_array()).then_some(())
        });
        backend
    }

    /// Everything told so far.
    pub fn told(&self) -> Vec<Value> {
        self.told.lock().clone()
    }

    /// The requests received so far.
    pub fn requests(&self) -> Vec<Value> {
        self.told().into_iter().filter(|line| line["method"].is_string()).collect()
    }

    /// The number of requests received so far.
    pub fn count(&self) -> usize {
        self.told.lock().iter().filter(|line| line["method"].is_string()).count()
    }

    /// Waits until it has told something that fits.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn tells(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{} tells of {what}", self.pod), || {
            self.told().into_iter().find(|line| fits(line))
        })
    }

    /// Forgets what was told.
    pub fn forget(&self) {
        self.told.lock().clear();
    }
}
