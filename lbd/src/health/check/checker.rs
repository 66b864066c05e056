//! Asks all questions of a plan, in a thread of its own: what answers cost does not delay heartbeats.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use lb_dataplane::Dataplane;
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, LocalSet, spawn_local},
    time::{Instant, sleep, timeout},
};

use super::{
    answer::Failure,
    judge::{Judge, Standing},
    pace::{Pace, Stretch},
    plan::{Plan, Question, WayTo},
    probe::Way,
    wire::{Ends, Wire},
};

const ADAPT_EVERY: Duration = Duration::from_secs(1);
/// Where there is no way to a backend, one is looked for again so soon.
const NO_WAY: Duration = Duration::from_millis(200);

/// What the checks of a backend have come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All are answered well.
    Good,
    /// One is not.
    Bad {
        /// Why, in the check's own words; `None` where the owner before has found it.
        reason: Option<String>,
        /// The backend said so itself; otherwise it said nothing.
        is_said: bool,
    },
}

/// The thread that checks. It ends when this is dropped.
pub(crate) struct Checker {
    plans: watch::Sender<Arc<Plan>>,
    board: Arc<Board>,
}

/// What was found, for whoever reads it.
#[derive(Default)]
struct Board {
    outcomes: Mutex<HashMap<u64, Outcome>>,
    changed: Notify,
    stretch: Stretch,
}

impl Board {
    fn outcomes(&self) -> MutexGuard<'_, HashMap<u64, Outcome>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Checker {
    /// Starts it; it asks nothing yet.
    pub(crate) fn start(dataplane: Weak<Dataplane>) -> io::Result<Self> {
        let (plans, follow) = watch::channel(Arc::default());
        let board = Arc::<Board>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let for_all = board.clone();
        let all = move || LocalSet::new().block_on(&runtime, run(dataplane, follow, for_all));
        thread::Builder::new().name("checks".into()).spawn(all)?;
        Ok(Self { plans, board })
    }

    /// From now on this is asked; what is asked already goes on.
    pub(crate) fn follow(&self, plan: Plan) {
        self.plans.send_if_modified(|present| {
            let differs = **present != plan;
            if differs {
                *present = Arc::new(plan);
            }
            differs
        });
    }

    /// What was found of a backend; `None` while that is not known.
    pub(crate) fn outcomes(&self) -> HashMap<u64, Outcome> {
        self.board.outcomes().clone()
    }

    /// Waits until something is found.
    pub(crate) async fn changed(&self) {
        self.board.changed.notified().await;
    }

    /// By how much intervals are longer than was asked for, in thousandths, so that the checks keep to their share of a core.
    pub(crate) fn stretch(&self) -> u32 {
        self.board.stretch.get()
    }
}

/// A question that is asked again and again.
struct Asking {
    course: Rc<RefCell<Course>>,
    task: AbortHandle,
}

/// What changes while it is.
struct Course {
    judge: Judge,
    way: WayTo,
    backends: Vec<u64>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The questions, and which concern each backend.
#[derive(Default)]
struct Asked {
    questions: HashMap<Question, Asking>,
    by_backend: HashMap<u64, Vec<Question>>,
}

async fn run(dataplane: Weak<Dataplane>, mut plans: watch::Receiver<Arc<Plan>>, board: Arc<Board>) {
    spawn_local(keep_to_budget(board.clone()));
    let wires = Rc::new(Wires { dataplane, open: RefCell::default() });
    let asked = Rc::<RefCell<Asked>>::default();
    while plans.changed().await.is_ok() {
        let plan = plans.borrow_and_update().clone();
        follow(&plan, &asked, &wires, &board);
        if plan.0.is_empty() {
            wires.open.borrow_mut().clear();
        }
    }
}

/// Goes over to another plan.
fn follow(plan: &Plan, asked: &Rc<RefCell<Asked>>, wires: &Rc<Wires>, board: &Arc<Board>) {
    let mut all = asked.borrow_mut();
    all.questions.retain(|question, _| plan.0.contains_key(question));
    let asked_before = std::mem::take(&mut all.by_backend);
    for (question, wanted) in &plan.0 {
        for backend in &wanted.backends {
            all.by_backend.entry(*backend).or_default().push(question.clone());
        }
        if let Some(asking) = all.questions.get(question) {
            let mut course = asking.course.borrow_mut();
            (course.way, course.backends) = (wanted.way, wanted.backends.clone());
            continue;
        }
        // Another question than so far begins anew.
        let is_other = wanted.backends.iter().any(|backend| asked_before.contains_key(backend));
        let standing = if is_other { Standing::Unknown } else { wanted.standing.clone() };
        let judge = Judge::new(question.what.rhythm, standing);
        let course = Course { judge, way: wanted.way, backends: wanted.backends.clone() };
        let course = Rc::new(RefCell::new(course));
        let (asked, wires, board) = (asked.clone(), wires.clone(), board.clone());
        let task = spawn_local(keep_asking(question.clone(), course.clone(), asked, wires, board)).abort_handle();
        all.questions.insert(question.clone(), Asking { course, task });
    }
    let ids: Vec<u64> = all.by_backend.keys().copied().collect();
    let known: HashMap<u64, Outcome> = ids.into_iter().filter_map(|id| Some((id, all.outcome(id)?))).collect();
    drop(all);
    let mut outcomes = board.outcomes();
    if *outcomes != known {
        *outcomes = known;
        board.changed.notify_one();
    }
}

impl Asked {
    /// All that a backend is asked must be answered well.
    fn outcome(&self, backend: u64) -> Option<Outcome> {
        let questions = self.by_backend.get(&backend)?;
        let mut is_known = true;
        for question in questions {
            match self.questions.get(question)?.course.borrow().judge.standing() {
                Standing::Good => {}
                Standing::Unknown => is_known = false,
                Standing::Bad(failure) => {
                    let reason = failure.as_ref().map(|failure| failure.reason.clone());
                    let is_said = failure.as_ref().is_none_or(|failure| failure.is_said);
                    return Some(Outcome::Bad { reason, is_said });
                }
            }
        }
        is_known.then_some(Outcome::Good)
    }
}

/// Asks one question until the task is aborted.
async fn keep_asking(
    question: Question,
    course: Rc<RefCell<Course>>,
    asked: Rc<RefCell<Asked>>,
    wires: Rc<Wires>,
    board: Arc<Board>,
) {
    let what = question.what.clone();
    let mut pace = Pace::new(what.rhythm, &question);
    let patience = Duration::from_millis(what.rhythm.timeout_ms.into());
    sleep(pace.first()).await;
    loop {
        let to = course.borrow().way;
        let Some(way) = wires.way(&question, to) else {
            sleep(NO_WAY).await;
            continue;
        };
        let begun = Instant::now();
        let answer = timeout(patience, way.ask(&what.probe, what.port)).await.unwrap_or_else(|_| {
            Err(Failure { reason: format!("no answer within {} ms", patience.as_millis()), is_said: false })
        });
        let was_refused = matches!(&answer, Err(failure) if failure.is_said);
        let answer = answer.map_err(|failure| Failure { reason: named(&what, &failure.reason), ..failure });
        if let Err(failure) = &answer {
            let Failure { reason, is_said } = failure;
            tracing::debug!(vip = %question.vip, backend = %question.backend, reason, is_said, "a check has failed");
        }
        let differs = course.borrow_mut().judge.hear(answer, Instant::now());
        if differs {
            let all = asked.borrow();
            let mut outcomes = board.outcomes();
            for backend in &course.borrow().backends {
                match all.outcome(*backend) {
                    Some(outcome) => drop(outcomes.insert(*backend, outcome)),
                    None => drop(outcomes.remove(backend)),
                }
            }
            board.changed.notify_one();
        }
        // Whoever says no is asked again soon, until it is known to mean it.
        let is_soon = was_refused && *course.borrow().judge.standing() == Standing::Good;
        let next = pace.next(is_soon, &board.stretch);
        sleep(next.saturating_sub(begun.elapsed())).await;
    }
}

/// With what was asked.
fn named(what: &super::plan::What, reason: &str) -> String {
    use lb_raft_store::table::Probe;
    let port = what.port;
    match &what.probe {
        Probe::Tcp => format!("tcp {port}: {reason}"),
        Probe::Http(probe) if probe.tls.is_some() => format!("https {port}{}: {reason}", probe.path),
        Probe::Http(probe) => format!("http {port}{}: {reason}", probe.path),
        Probe::Grpc(_) => format!("grpc {port}: {reason}"),
        Probe::Udp(_) => format!("udp {port}: {reason}"),
        Probe::Dns(_) => format!("dns {port}: {reason}"),
        Probe::Icmp => format!("icmp: {reason}"),
    }
}

/// Stretches the intervals while this thread takes more than its share of a core.
async fn keep_to_budget(board: Arc<Board>) {
    let mut before = (Instant::now(), thread_time());
    loop {
        sleep(ADAPT_EVERY).await;
        let now = (Instant::now(), thread_time());
        let used = (now.1 - before.1).as_micros() * 1000 / now.0.duration_since(before.0).as_micros().max(1);
        board.stretch.adapt(used.try_into().unwrap_or(u32::MAX));
        before = now;
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// The segments that are in use, by the numbers of their interfaces.
struct Wires {
    dataplane: Weak<Dataplane>,
    open: RefCell<HashMap<usize, Open>>,
}

/// It is closed when this is dropped, and the last flow on it has ended.
struct Open {
    wire: Arc<Wire>,
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wires {
    fn way(self: &Rc<Self>, question: &Question, to: WayTo) -> Option<Way> {
        match to {
            WayTo::None => None,
            WayTo::Local => Some(Way::Local(question.vip)),
            WayTo::Segment { port, mac, source } => {
                Some(Way::Wire(self.wire(port)?, Ends { mac, source, vip: question.vip }))
            }
        }
    }

    /// Opens it where it is not.
    fn wire(self: &Rc<Self>, port: usize) -> Option<Arc<Wire>> {
        if let Some(open) = self.open.borrow().get(&port) {
            return Some(open.wire.clone());
        }
        let dataplane = self.dataplane.upgrade()?;
        let opened = dataplane.open_check_socket(port).map_err(io::Error::other).and_then(Wire::new);
        let wire = opened.inspect_err(|error| tracing::debug!(%error, "a socket for checks is not open yet")).ok()?;
        let (wires, runs) = (Rc::downgrade(self), wire.clone());
        let task = spawn_local(async move {
            let error = runs.run().await;
            tracing::debug!(%error, "a socket for checks is closed, and opened anew when it is needed");
            let wires = wires.upgrade();
            drop(wires.and_then(|wires| wires.open.borrow_mut().remove(&port)));
        });
        self.open.borrow_mut().insert(port, Open { wire: wire.clone(), task: task.abort_handle() });
        Some(wire)
    }
}
