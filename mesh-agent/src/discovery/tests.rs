//! What a publication costs and tells, whatever the source.

use std::cell::Cell;

use super::objects::{Kind, Object, pod};
use super::problem::Fault;
use super::*;

/// A source that counts how often it is asked what is to be mended.
#[derive(Default)]
struct Counting {
    objects: Objects,
    fault: Option<&'static str>,
    has_other_problems: bool,
    asked: Cell<usize>,
}

impl Counting {
    fn pod(&mut self, name: &str, ip: &str) {
        let text = serde_json::json!({
            "metadata": {"name": name, "namespace": "shop"}, "status": {"podIP": ip}, "spec": {"nodeName": "n"},
        });
        let pod = pod::accept(&serde_json::from_value(text).unwrap()).unwrap();
        let key = Key::new(Kind::Pod, Some("shop"), Some(name)).unwrap();
        self.objects.insert(key, 0, Arc::new(Object::Pod(Box::new(pod))));
    }

    fn fault(&mut self, fault: Option<&'static str>) {
        self.fault = fault;
        self.has_other_problems = true;
    }
}

impl Source for Counting {
    fn objects(&self) -> &Objects {
        &self.objects
    }

    fn take_changed(&mut self) -> BTreeSet<Key> {
        self.objects.take_changed()
    }

    fn take_problems_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_other_problems)
    }

    fn problems(&self, findings: &[Finding]) -> Vec<Problem> {
        self.asked.set(self.asked.get() + 1);
        let problem = |fault: &Fault| Problem {
            file: None,
            line: None,
            column: None,
            object: None,
            field: None,
            message: fault.message.clone(),
        };
        let own = self.fault.map(|fault| problem(&Fault::whole(fault)));
        own.into_iter().chain(findings.iter().map(|finding| problem(&finding.fault))).collect()
    }
}

#[test]
fn problems_are_gathered_only_when_there_may_be_other_ones() {
    let mut publisher = Publisher::new(registry::new().0, policy::new().0, route::new().0);
    let mut source = Counting::default();
    let mut publish = |source: &mut Counting| {
        publisher.publish(source);
        (source.asked.get(), publisher.report.lock().problems.len())
    };
    source.pod("a", "10.0.0.1");
    assert_eq!(publish(&mut source), (0, 0));
    source.pod("b", "10.0.0.1");
    assert_eq!(publish(&mut source), (1, 1), "two pods want one address");
    source.pod("c", "10.0.0.3");
    assert_eq!(publish(&mut source), (1, 1), "what was wrong still is");
    source.fault(Some("unreadable"));
    assert_eq!(publish(&mut source), (2, 2));
    source.pod("c", "10.0.0.4");
    assert_eq!(publish(&mut source), (2, 2));
    source.pod("b", "10.0.0.2");
    assert_eq!(publish(&mut source), (3, 1));
    source.fault(None);
    assert_eq!(publish(&mut source), (4, 0));
}
