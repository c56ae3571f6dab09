//! Reads that wait until this member's state is not older than any write answered before they were asked.
//!
//! Raft's read index (Ongaro's thesis, section 6.4): the leader proves to a majority that it leads and tells how far
//! the log was agreed. Questions asked while one is on its way wait for the next, so that many cost one round.

use std::collections::BTreeMap;

use crate::Error;
use crate::member::Ticket;

/// Ticks after which an unanswered question is asked again: it may have been lost.
const REPEAT_TICKS: u64 = 4;

/// Ticks after which a question is given up. Longer than an election takes.
const PATIENCE_TICKS: u64 = 30;

#[derive(Debug)]
struct Question {
    tickets: Vec<Ticket>,
    age: u64,
}

#[derive(Debug)]
pub(crate) struct Reads {
    raft_id: u64,
    next: u64,
    unasked: Vec<Ticket>,
    asked: BTreeMap<u64, Question>,
    /// Readers by the index they wait for.
    known: BTreeMap<u64, Vec<Ticket>>,
    is_repeat_due: bool,
}

impl Reads {
    pub(crate) fn new(raft_id: u64) -> Self {
        Self {
            raft_id,
            next: 0,
            unasked: Vec::new(),
            asked: BTreeMap::new(),
            known: BTreeMap::new(),
            is_repeat_due: false,
        }
    }

    pub(crate) fn ask(&mut self, ticket: Ticket) {
        self.unasked.push(ticket);
    }

    pub(crate) fn has_unasked(&self) -> bool {
        !self.unasked.is_empty() || self.is_repeat_due
    }

    /// The context of a question for all who have not asked yet.
    pub(crate) fn next_context(&mut self) -> Option<Vec<u8>> {
        if self.unasked.is_empty() {
            return None;
        }
        self.next += 1;
        let tickets = std::mem::take(&mut self.unasked);
        self.asked.insert(self.next, Question { tickets, age: 0 });
        Some(self.context(self.next))
    }

    /// Contexts of questions that are to be asked again.
    pub(crate) fn repeated(&mut self) -> Vec<Vec<u8>> {
        if !std::mem::take(&mut self.is_repeat_due) {
            return Vec::new();
        }
        let due =
            |question: &Question| question.age > 0 && question.age.is_multiple_of(REPEAT_TICKS);
        let due = self.asked.iter().filter(|(_, question)| due(question));
        due.map(|(number, _)| self.context(*number)).collect()
    }

    /// Contexts of different members must differ: the leader keeps them in one place.
    fn context(&self, number: u64) -> Vec<u8> {
        [self.raft_id.to_le_bytes(), number.to_le_bytes()].concat()
    }

    pub(crate) fn tick(&mut self) {
        for question in self.asked.values_mut() {
            question.age += 1;
            self.is_repeat_due |= question.age % REPEAT_TICKS == 0;
        }
    }

    pub(crate) fn give_up(&mut self, answers: &mut Vec<(Ticket, Result<(), Error>)>) {
        let old: Vec<_> = self
            .asked
            .iter()
            .filter(|(_, question)| question.age > PATIENCE_TICKS)
            .map(|(number, _)| *number)
            .collect();
        for number in old {
            let question = self.asked.remove(&number).into_iter();
            let tickets = question.flat_map(|question| question.tickets);
            answers.extend(tickets.map(|ticket| (ticket, Err(Error::NoLeader))));
        }
    }

    /// The question with this context is answered: everything up to `index` has to be applied.
    pub(crate) fn known(&mut self, context: &[u8], index: u64) {
        let number = context.get(8..).and_then(|bytes| bytes.first_chunk::<8>());
        let Some(number) = number.map(|bytes| u64::from_le_bytes(*bytes)) else { return };
        // What was asked before this question is answered by it too.
        let mut answered = self.asked.split_off(&(number + 1));
        std::mem::swap(&mut self.asked, &mut answered);
        let tickets = answered.into_values().flat_map(|question| question.tickets);
        self.known.entry(index).or_default().extend(tickets);
    }

    /// Answers those whose index is applied.
    pub(crate) fn settle(&mut self, applied: u64, answers: &mut Vec<(Ticket, Result<(), Error>)>) {
        let later = self.known.split_off(&(applied + 1));
        let settled = std::mem::replace(&mut self.known, later);
        answers.extend(settled.into_values().flatten().map(|ticket| (ticket, Ok(()))));
    }
}
