//! The checker on histories made by hand: a good one, and one for each way in which it can be broken.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::checker::{Promise, Violation, check, check_claims};
use super::discarded::Kept;
use super::history::{Action, Op, Outcome, Row, State, content, marker};
use super::watch::{Claim, Claims};

fn op(client: &str, seq: u64, action: Action, outcome: Outcome) -> Op {
    Op { client: client.into(), seq, action, outcome }
}

fn row(client: &str, seq: u64, moved: Option<(i64, i64, i64)>) -> Row {
    Row { client: client.into(), seq, content: content(client, seq), moved }
}

fn transfer() -> Action {
    Action::Transfer { source: 1, target: 2, amount: 10 }
}

fn id(client: &str, seq: u64) -> (String, u64) {
    (client.into(), seq)
}

/// The first `log` and `transfers` rows of a state, as a database that has no more than these.
fn cut(end: &State, log: usize, transfers: usize) -> State {
    let mut state = State {
        log: end.log[..log].to_vec(),
        transfers: end.transfers[..transfers].to_vec(),
        balances: Vec::new(),
    };
    state.balances = state.owed();
    state
}

fn saw(state: &State) -> Outcome {
    Outcome::Saw(state.seen())
}

/// Two clients that write, one that reads; everything as it should be. The log is a1 b1 a4, a transfer a2.
fn good() -> (Vec<Op>, State) {
    let log = vec![row("a", 1, None), row("b", 1, None), row("a", 4, None)];
    let mut end = State { log, transfers: vec![row("a", 2, Some((1, 2, 10)))], balances: Vec::new() };
    end.balances = end.owed();
    let history = vec![
        op("a", 1, Action::Append, Outcome::Ok),
        op("a", 2, transfer(), Outcome::Ok),
        op("a", 3, Action::Append, Outcome::Failed("begin: busy".into())),
        op("a", 4, Action::Append, Outcome::Unknown("commit: disk I/O error".into())),
        op("a", 5, transfer(), Outcome::Unknown("no answer".into())),
        op("a", 6, Action::Read, saw(&end)),
        op("b", 1, Action::Append, Outcome::Ok),
        op("b", 2, Action::Read, saw(&cut(&end, 2, 1))),
        op("r", 1, Action::Read, saw(&cut(&end, 0, 0))),
        op("r", 2, Action::Read, Outcome::Failed("read: disk I/O error".into())),
        op("r", 3, Action::Read, saw(&cut(&end, 1, 0))),
        op("r", 4, Action::Read, saw(&cut(&end, 2, 1))),
    ];
    (history, end)
}

fn kept(files: usize, markers: &[String]) -> Kept {
    Kept { files, markers: markers.iter().cloned().collect::<HashSet<_>>() }
}

/// The good history after a change; what the checker says of it where everything acknowledged must stay.
fn after(change: impl FnOnce(&mut Vec<Op>, &mut State)) -> Vec<Violation> {
    let (mut history, mut end) = good();
    change(&mut history, &mut end);
    check(&history, &end, Promise::Stays)
}

/// The state without a row of the log, its money in order.
fn without(end: &mut State, client: &str, seq: u64) {
    end.log.retain(|row| (row.client.as_str(), row.seq) != (client, seq));
    end.transfers.retain(|row| (row.client.as_str(), row.seq) != (client, seq));
    end.balances = end.owed();
}

fn without_reads(history: &mut Vec<Op>) {
    history.retain(|op| op.action != Action::Read);
}

#[test]
fn a_good_history_breaks_no_rule() {
    let (history, end) = good();
    assert_eq!(check(&history, &end, Promise::Stays), []);
    assert_eq!(check(&history, &end, Promise::Traceable(&kept(0, &[]))), []);
}

#[test]
fn an_acknowledged_operation_that_is_missing_is_lost() {
    let broken = after(|history, end| {
        without_reads(history);
        without(end, "b", 1);
    });
    assert_eq!(broken, [Violation::Lost(id("b", 1))]);
    let broken = after(|history, end| {
        without_reads(history);
        without(end, "a", 2);
    });
    assert_eq!(broken, [Violation::Lost(id("a", 2))]);
}

#[test]
fn an_unknown_operation_may_be_there_or_not() {
    let broken = after(|history, end| {
        without_reads(history);
        without(end, "a", 4);
        end.transfers.push(row("a", 5, Some((1, 2, 10))));
        end.balances = end.owed();
    });
    assert_eq!(broken, []);
}

#[test]
fn an_operation_that_is_there_twice_is_found() {
    let broken = after(|_, end| end.log.push(row("a", 1, None)));
    assert_eq!(broken, [Violation::Twice(id("a", 1))]);
    // Not even a failure excuses it.
    let broken = after(|_, end| end.log.extend([row("a", 3, None), row("a", 3, None)]));
    assert_eq!(broken, [Violation::Twice(id("a", 3))]);
}

#[test]
fn a_failed_operation_that_is_there_is_found() {
    let broken = after(|_, end| end.log.push(row("a", 3, None)));
    assert_eq!(broken, [Violation::FailedButThere(id("a", 3))]);
}

#[test]
fn rows_that_nobody_wrote_are_found() {
    let invented = |change: fn(&mut Vec<Op>, &mut State)| {
        let broken = after(|history, end| {
            without_reads(history);
            change(history, end);
        });
        assert!(matches!(broken[..], [Violation::Invented(_)]), "{broken:?}");
    };
    invented(|_, end| end.log.push(row("c", 1, None)));
    invented(|_, end| end.log[0].content = content("a", 2));
    invented(|history, end| {
        history.push(op("a", 7, Action::Read, Outcome::Failed("read".into())));
        end.log.push(row("a", 7, None));
    });
    invented(|_, end| {
        end.transfers[0].moved = Some((1, 2, 11));
        end.balances = end.owed();
    });
    // A transfer's row in the log, and an append's among the transfers.
    invented(|_, end| end.log.push(row("a", 5, None)));
    invented(|history, end| {
        history.push(op("a", 8, Action::Append, Outcome::Unknown("no answer".into())));
        end.transfers.push(row("a", 8, Some((1, 1, 0))));
    });
}

#[test]
fn a_read_that_is_not_the_beginning_of_the_end_is_found() {
    // Other rows, as many.
    let broken = after(|history, end| {
        let mut other = cut(end, 2, 1);
        other.log.swap(0, 1);
        history.push(op("q", 1, Action::Read, saw(&other)));
    });
    assert_eq!(broken, [Violation::NotAPrefix(id("q", 1))]);
    // More rows than there are in the end.
    let broken = after(|history, end| {
        let mut other = end.clone();
        other.log.push(row("a", 5, None));
        history.push(op("q", 1, Action::Read, saw(&other)));
    });
    assert_eq!(broken, [Violation::NotAPrefix(id("q", 1))]);
    let broken = after(|history, end| {
        let mut other = end.clone();
        other.transfers[0].moved = Some((2, 1, 10));
        other.balances = other.owed();
        history.push(op("q", 1, Action::Read, saw(&other)));
    });
    assert_eq!(broken, [Violation::NotAPrefix(id("q", 1))]);
}

#[test]
fn a_client_that_sees_less_than_before_is_found() {
    let broken = after(|history, end| history.push(op("r", 5, Action::Read, saw(&cut(end, 1, 0)))));
    assert_eq!(broken, [Violation::WentBack(id("r", 5))]);
    // Another client may be behind.
    assert_eq!(after(|history, end| history.push(op("q", 5, Action::Read, saw(&cut(end, 1, 0))))), []);
}

#[test]
fn a_client_that_does_not_see_its_own_write_is_found() {
    let missing = |log, transfers| {
        after(|history, end| {
            history.retain(|op| (op.client.as_str(), op.seq) != ("a", 6));
            history.push(op("a", 6, Action::Read, saw(&cut(end, log, transfers))));
        })
    };
    assert_eq!(missing(1, 0), [Violation::OwnWriteMissing(id("a", 6))]);
    // It sees the transfer, and not what it appended before.
    let broken = missing(0, 1);
    assert!(broken.contains(&Violation::OwnWriteMissing(id("a", 6))), "{broken:?}");
    // What is unknown need not be seen.
    assert_eq!(missing(2, 1), []);
}

#[test]
fn two_reads_of_which_neither_contains_the_other_are_found() {
    let broken = after(|history, end| {
        history.push(op("p", 1, Action::Read, saw(&cut(end, 3, 0))));
        history.push(op("q", 1, Action::Read, saw(&cut(end, 2, 1))));
    });
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert!(matches!(&broken[0], Violation::TwoHistories(_, later) if *later == id("p", 1)), "{broken:?}");
}

#[test]
fn money_that_does_not_add_up_is_found() {
    let broken = after(|history, end| {
        let mut half = cut(end, 2, 1);
        half.balances[1] += 10;
        history.push(op("q", 1, Action::Read, saw(&half)));
    });
    assert_eq!(broken, [Violation::MoneyInRead(id("q", 1))]);
    // The sum is right, and it is the wrong account.
    let broken = after(|history, end| {
        let mut wrong = cut(end, 2, 1);
        wrong.balances.swap(1, 3);
        history.push(op("q", 1, Action::Read, saw(&wrong)));
    });
    assert_eq!(broken, [Violation::MoneyInRead(id("q", 1))]);
    assert_eq!(after(|_, end| end.balances[0] -= 1), [Violation::MoneyInTheEnd]);
    assert_eq!(after(|_, end| end.balances.push(0)), [Violation::MoneyInTheEnd]);
}

#[test]
fn a_damaged_database_is_found() {
    let broken = after(|history, _| {
        history.push(op("q", 1, Action::Read, Outcome::Corrupt("malformed".into())));
    });
    assert_eq!(broken, [Violation::Corrupt(id("q", 1), "malformed".into())]);
}

#[test]
fn under_normal_what_is_lost_must_be_kept_somewhere() {
    let (mut history, mut end) = good();
    without_reads(&mut history);
    without(&mut end, "b", 1);
    let with = |kept: Kept| check(&history, &end, Promise::Traceable(&kept));
    assert_eq!(with(kept(1, &[marker("b", 1)])), []);
    assert_eq!(with(kept(0, &[])), [Violation::Vanished(id("b", 1))]);
    // A file with something else in it explains nothing.
    assert_eq!(with(kept(1, &[marker("b", 11), marker("a", 1)])), [Violation::Vanished(id("b", 1))]);
}

#[test]
fn under_normal_reads_may_show_what_is_cut_off_later_only_where_something_was() {
    let (mut history, end) = good();
    let mut tail = end.clone();
    tail.log.push(row("a", 5, None));
    history.push(op("q", 1, Action::Read, saw(&tail)));
    history.push(op("q", 2, Action::Read, saw(&end)));
    let with = |files| check(&history, &end, Promise::Traceable(&kept(files, &[])));
    assert_eq!(with(0), [Violation::NotAPrefix(id("q", 1)), Violation::WentBack(id("q", 2))]);
    assert_eq!(with(1), []);
}

/// Claims of a term, a node, and the tenths of a second at which it first and last made them.
fn claims(claims: &[(u64, &str, u64, u64)]) -> Vec<Claim> {
    let start = Instant::now();
    let at = |tenths| start + Duration::from_millis(tenths * 100);
    let claim = |(term, name, first, last): &(u64, &str, u64, u64)| Claim {
        term: *term,
        name: (*name).to_owned(),
        first: at(*first),
        last: at(*last),
    };
    claims.iter().map(claim).collect()
}

#[test]
fn primaries_of_terms_that_follow_one_another_are_good() {
    let good = claims(&[(1, "n1", 0, 9), (2, "n2", 10, 20), (4, "n1", 25, 30)]);
    assert_eq!(check_claims(&good), []);
    // A primary that is elected again was primary all the time.
    assert_eq!(check_claims(&claims(&[(1, "n1", 0, 9), (2, "n1", 8, 20)])), []);
}

#[test]
fn two_primaries_in_one_term_are_found() {
    let two = Violation::TwoPrimaries { term: 2, names: vec!["n1".into(), "n3".into()] };
    assert_eq!(check_claims(&claims(&[(1, "n1", 0, 9), (2, "n3", 10, 20), (2, "n1", 30, 40)])), [two]);
}

#[test]
fn a_primary_that_has_not_noticed_its_successor_is_found() {
    let stale = Violation::StalePrimary {
        term: 1,
        name: "n1".into(),
        later: (2, "n2".into()),
        for_at_least: Duration::from_millis(100),
    };
    assert_eq!(check_claims(&claims(&[(1, "n1", 0, 11), (2, "n2", 10, 20)])), [stale]);
}

#[test]
fn claims_of_one_node_and_term_are_one() {
    let mut all = Claims::default();
    for claim in claims(&[(1, "n1", 3, 4), (1, "n1", 1, 2), (1, "n1", 8, 9), (2, "n1", 5, 5)]) {
        all.add(claim);
    }
    let [one, _] = all.all() else { panic!("{all:?}") };
    assert_eq!(one.last - one.first, Duration::from_millis(800));
}
