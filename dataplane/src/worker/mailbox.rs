//! What reaches a worker beside the frames of its sockets: frames that other workers hand over, and questions of the
//! control plane. Both queues are bounded: whoever finds the one full drops the frame, and the other, has no answer.

mod doorbell;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use doorbell::Doorbell;
use rustix::event::{EventfdFlags, eventfd};

use crate::{packet::OwnedFrame, query::Query};

/// Frames that wait for one worker.
const CAPACITY: usize = 256;
/// Frames that a worker takes at a time, as of an interface: each of them costs several times as much as one of its own.
const AT_ONCE: usize = 64;
/// Questions that wait for one worker. Each has somebody who waits for the answer.
const QUESTIONS: usize = 256;

/// A frame on its way to the worker that owns its flow.
#[derive(Debug)]
pub(crate) struct Handed {
    /// The interface that it came by.
    pub(crate) port: usize,
    pub(crate) frame: OwnedFrame,
}

/// A worker's mailbox, as others see it.
pub(crate) struct Mailbox {
    frames: SyncSender<Handed>,
    questions: Mutex<Vec<Query>>,
    bell: Doorbell,
    /// Ends the worker's sleep.
    wake: OwnedFd,
}

/// The worker's end.
pub(crate) struct Inbox(Receiver<Handed>);

impl Inbox {
    /// What nobody has taken.
    pub(crate) fn rest(&self) -> impl Iterator<Item = Handed> {
        self.0.try_iter()
    }
}

impl Mailbox {
    /// And the end that its worker takes frames from.
    pub(crate) fn new() -> io::Result<(Self, Inbox)> {
        let (frames, receiver) = sync_channel(CAPACITY);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok((Self { frames, questions: Mutex::default(), bell: Doorbell::default(), wake }, Inbox(receiver)))
    }

    /// What becomes readable when the worker shall not sleep.
    pub(crate) fn waker(&self) -> io::Result<OwnedFd> {
        self.wake.try_clone()
    }

    /// Ends the worker's sleep.
    pub(crate) fn wake(&self) {
        // It fails only when the counter is full, and then the worker is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Hands a frame over. Whether there was room.
    pub(crate) fn hand(&self, frame: Handed) -> bool {
        let taken = self.frames.try_send(frame).is_ok();
        if taken {
            self.announce();
        }
        taken
    }

    /// Asks the worker, which answers between two batches. Where it has too many questions already, this one goes, and
    /// whoever waits for the answer is told so.
    pub(crate) fn ask(&self, question: Query) {
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        if questions.len() < QUESTIONS {
            questions.push(question);
            drop(questions);
            self.announce();
        }
    }

    fn announce(&self) {
        if self.bell.ring() {
            self.wake();
        }
    }

    /// Takes the questions out that were put in before this call, and some of the frames. `None` if there is nothing.
    pub(crate) fn take(&self, Inbox(frames): &Inbox) -> Option<(Vec<Handed>, Vec<Query>)> {
        if !self.bell.answer() {
            return None;
        }
        let questions = std::mem::take(&mut *self.questions.lock().unwrap_or_else(PoisonError::into_inner));
        // What comes from now on is announced again; so a flood of it does not keep the worker here.
        let frames: Vec<Handed> = frames.try_iter().take(AT_ONCE).collect();
        if frames.len() == AT_ONCE {
            // There may be more, for the next time.
            self.announce();
        }
        Some((frames, questions))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;
    use crate::query::{Answer, Reply};

    fn frame(number: u64) -> Handed {
        Handed { port: 0, frame: OwnedFrame::whole(&number.to_be_bytes()) }
    }

    #[test]
    fn a_full_mailbox_refuses() {
        let (mailbox, inbox) = Mailbox::new().unwrap();
        let taken = (0..1000).filter(|n| mailbox.hand(frame(*n))).count();
        assert_eq!(taken, CAPACITY);
        let takes: Vec<usize> =
            std::iter::from_fn(|| mailbox.take(&inbox).map(|(frames, _)| frames.len())).filter(|n| *n > 0).collect();
        assert_eq!(takes, [AT_ONCE; CAPACITY / AT_ONCE], "a flood is taken piece by piece, and nothing is left lying");
        assert!(mailbox.hand(frame(0)));
    }

    #[test]
    fn too_many_questions_have_no_answer() {
        let (mailbox, inbox) = Mailbox::new().unwrap();
        let answers: Vec<_> = (0..=QUESTIONS)
            .map(|_| {
                let (reply, answer) = Reply::channel();
                mailbox.ask(Query::ListFlows(0..1, reply));
                answer
            })
            .collect();
        let (_, questions) = mailbox.take(&inbox).unwrap();
        assert_eq!(questions.len(), QUESTIONS);
        for question in questions {
            if let Query::ListFlows(_, reply) = question {
                reply.give((Vec::new(), 0));
            }
        }
        let answered = answers.into_iter().filter_map(Answer::wait).count();
        assert_eq!(answered, QUESTIONS);
    }

    #[test]
    fn nothing_that_was_handed_over_is_left_lying() {
        const EACH: u64 = 20_000;
        let (mailbox, inbox) = Mailbox::new().unwrap();
        let mailbox = Arc::new(mailbox);
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let mailbox = mailbox.clone();
                thread::spawn(move || (0..EACH).filter(|n| mailbox.hand(frame(*n))).count())
            })
            .collect();
        let mut got = 0;
        let mut take = || {
            let taken = mailbox.take(&inbox).map_or(0, |(frames, _)| frames.len());
            got += taken;
            taken
        };
        while !senders.iter().all(thread::JoinHandle::is_finished) {
            take();
        }
        // What was put in since the last look has rung, and what was left has rung again.
        while take() > 0 {}
        let handed: usize = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
        assert_eq!(got, handed);
        assert_eq!(inbox.rest().count(), 0);
    }
}
