//! Which file events tell that something may have changed.

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind};

/// Whether it is worth looking again. Opening and reading a file are events too, and whoever answers them by reading it
/// again never comes to an end. An error may have swallowed an event.
pub fn may_be_change(event: &notify::Result<Event>) -> bool {
    let Ok(event) = event else { return true };
    !event.kind.is_access() || event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, ModifyKind, RemoveKind};

    use super::*;

    #[test]
    fn looking_at_a_file_is_no_change_and_the_end_of_writing_is() {
        let told = |kind| may_be_change(&Ok(Event::new(kind)));
        let access = EventKind::Access;
        assert!(!told(access(AccessKind::Read)) && !told(access(AccessKind::Open(AccessMode::Any))));
        assert!(!told(access(AccessKind::Close(AccessMode::Read))));
        assert!(told(access(AccessKind::Close(AccessMode::Write))));
        assert!(told(EventKind::Create(CreateKind::Any)) && told(EventKind::Modify(ModifyKind::Any)));
        assert!(told(EventKind::Remove(RemoveKind::Any)) && told(EventKind::Any));
        assert!(may_be_change(&Err(notify::Error::generic("the queue was full"))));
    }
}
