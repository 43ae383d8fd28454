//! What the core asks for about users that takes a while: hashing, and writing to disk. Done in threads of their own, and
//! answered through the driver's inbox.

use std::collections::BTreeMap;
use std::sync::Arc;

use arborcast_core::{Event, TaskId, UserChange, WriteId};
use arborcast_proto::wire::Secret;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::driver::Inbound;
use crate::credentials::Job;
use crate::store::Store;

/// Where the driver hands such work to.
pub(super) struct UserWork {
    /// To the threads that hash.
    pub(super) jobs: mpsc::Sender<Job>,
    /// Verifications that are wanted and not done, as many as there are jobs.
    pub(super) verifying: BTreeMap<TaskId, CancellationToken>,
    /// The users on disk, if they are kept there.
    pub(super) store: Option<Arc<Store>>,
    /// For the answers.
    pub(super) inbox: mpsc::Sender<Inbound>,
    /// Waited for at the end.
    pub(super) threads: TaskTracker,
}

impl UserWork {
    pub(super) fn hash(&self, task: TaskId, secret: Secret) {
        self.begin(Job::Hash { task, secret });
    }

    pub(super) fn verify(&mut self, task: TaskId, secret: Secret, hash: String) {
        let forgotten = CancellationToken::new();
        self.verifying.insert(task, forgotten.clone());
        self.begin(Job::Verify { task, secret, hash, forgotten });
    }

    /// Nobody waits for the answer any more: those who do are not kept waiting by those who have gone.
    pub(super) fn forget(&mut self, task: TaskId) {
        if let Some(forgotten) = self.verifying.remove(&task) {
            forgotten.cancel();
        }
    }

    /// The answer is there.
    pub(super) fn answered(&mut self, event: &Event) {
        if let Event::SecretVerified { task, .. } = event {
            self.verifying.remove(task);
        }
    }

    fn begin(&self, job: Job) {
        if let Err(refused) = self.jobs.try_send(job) {
            self.answer(refused.into_inner().refused());
        }
    }

    /// Writes in a thread of its own. The core asks for one write at a time.
    pub(super) fn write(&self, write: WriteId, changes: Vec<UserChange>) {
        let Some(store) = self.store.clone() else {
            self.answer(Event::UsersWritten { write, error: None });
            return;
        };
        let inbox = self.inbox.clone();
        self.threads.spawn_blocking(move || {
            let error = store.write(&changes).err();
            // The driver being gone means that the node has stopped.
            let _ = inbox.blocking_send(Inbound::Answered(Event::UsersWritten { write, error }));
        });
    }

    fn answer(&self, event: Event) {
        let inbox = self.inbox.clone();
        self.threads.spawn(async move {
            let _ = inbox.send(Inbound::Answered(event)).await;
        });
    }
}
