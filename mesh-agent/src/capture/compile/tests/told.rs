//! What tables say, with names for numbers, so that two compilers can be compared.

use super::*;

/// What tables say, with names for numbers, in order.
fn lines(tables: [Vec<String>; 6]) -> Vec<String> {
    let mut lines: Vec<_> = tables.into_iter().flatten().collect();
    lines.sort();
    lines
}

pub(super) fn told(plan: &Plan) -> Vec<String> {
    let tables = &plan.tables;
    let name = |number: u32| plan.numbers.name(number).unwrap_or("nobody").to_owned();
    let workloads = tables.workloads.iter().map(|(key, entry)| (*key, *entry));
    let held = tables.held.iter().map(|(key, what)| format!("held {key} {what}"));
    let skip = tables
        .skip_ports
        .iter()
        .map(|(key, _)| format!("skip {} {} {}", name(key.workload), key.port, key.direction));
    let addresses = tables.addresses.iter().map(|(ip, local)| address_line(*ip, *local, &name(local.id)));
    let frontends = tables.frontends.iter().map(|(key, front)| {
        let backends =
            (0..front.count).map(|index| tables.backends.get(&BackendKey { service: front.service, index }));
        let backends: Vec<_> = backends.map(|one| one.map(|one| (one.address, one.port))).collect();
        let counted = (0..front.count).all(|index| {
            tables
                .open
                .get(&tables.backends.get(&BackendKey { service: front.service, index }).unwrap().endpoint)
                .is_some()
        });
        assert!(counted, "every endpoint can be counted");
        format!("{key:?} {} {} {backends:?}", front.count, front.flags)
    });
    lines([
        workloads
            .map(|(key, entry)| format!("{key} {} {:?}", name(entry.id), Entry { id: 0, ..entry }))
            .collect(),
        held.chain(skip).collect(),
        addresses.collect(),
        verdicts_told(plan),
        frontends.collect(),
        vec![format!("{} backends, {} open", tables.backends.len(), tables.open.len())],
    ])
}

pub(super) fn verdicts_told(plan: &Plan) -> Vec<String> {
    let name = |number: u32| plan.numbers.name(number).unwrap_or("nobody").to_owned();
    let verdicts = plan.tables.verdicts.iter();
    let mut lines: Vec<_> = verdicts.map(|(key, verdict)| verdict_line(key, verdict, name)).collect();
    lines.sort();
    lines
}

fn verdict_line(key: &VerdictKey, verdict: &Verdict, name: impl Fn(u32) -> String) -> String {
    let policy = if verdict.policy == 0 { String::new() } else { name(verdict.policy) };
    format!("{}->{} {} {} {policy}", name(key.source), name(key.destination), key.port, verdict.action)
}

fn address_line(ip: Address, local: Local, name: &str) -> String {
    format!("{ip:?} {name} {:?}", Local { id: 0, ..local })
}

pub(super) fn told_plain(tables: &naive::Tables, numbers: &naive::Numbers) -> Vec<String> {
    let name = |number: u32| numbers.name(number).to_owned();
    let workloads = tables.workloads.iter().map(|(key, entry)| (*key, *entry));
    let held = tables.held.iter().map(|(key, what)| format!("held {key} {what}"));
    let skip = tables
        .skip_ports
        .keys()
        .map(|key| format!("skip {} {} {}", name(key.workload), key.port, key.direction));
    let addresses = tables.addresses.iter().map(|(ip, local)| address_line(*ip, *local, &name(local.id)));
    let verdicts = tables.verdicts.iter().map(|(key, verdict)| verdict_line(key, verdict, name));
    let frontends = tables.frontends.iter().map(|(key, front)| {
        let backends =
            (0..front.count).map(|index| tables.backends.get(&BackendKey { service: front.service, index }));
        let backends: Vec<_> = backends.map(|one| one.map(|one| (one.address, one.port))).collect();
        format!("{key:?} {} {} {backends:?}", front.count, front.flags)
    });
    lines([
        workloads
            .map(|(key, entry)| format!("{key} {} {:?}", name(entry.id), Entry { id: 0, ..entry }))
            .collect(),
        held.chain(skip).collect(),
        addresses.collect(),
        verdicts.collect(),
        frontends.collect(),
        vec![format!("{} backends, {} open", tables.backends.len(), tables.open.len())],
    ])
}
