//! The check at the end: the figures of every query over the table against what was answered 202.

use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{endpoint, with_causes};
use crate::reaction::figures::Figures;

/// How often the figures are read while windows close.
const POLL: Duration = Duration::from_millis(250);

/// What one query says of itself.
#[derive(Clone, Debug, Deserialize)]
struct QueryState {
    name: String,
    text: String,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Deserialize)]
struct QueryList {
    queries: Vec<QueryState>,
}

/// One query's account of the reactions of this run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryAccount {
    /// The query's name.
    pub name: String,
    /// Its figures at the end.
    #[serde(flatten)]
    pub figures: Figures,
    /// What `accepted` grew by during the run.
    pub grown: u64,
    /// What of that is neither known to be ours nor of a request with unknown outcome: other senders' reactions.
    pub by_others: u64,
    /// Whether every reaction is accounted for.
    pub holds: bool,
}

/// The figures before and after.
#[derive(Debug)]
pub(super) struct Accounts {
    url: Url,
    table: &'static str,
    before: Vec<QueryState>,
    after: Result<Vec<QueryState>, String>,
}

/// What the accounts say, and each reason why they do not hold.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) queries: Vec<QueryAccount>,
    pub(super) problems: Vec<String>,
}

impl Accounts {
    /// Reads the figures before anything is sent.
    pub(super) async fn open(
        client: &reqwest::Client,
        base: &Url,
        table: &'static str,
    ) -> Result<Self, String> {
        let url = endpoint(base, &["v1", "queries"]);
        let before = read(client, &url, table).await?;
        Ok(Self { url, table, after: Ok(before.clone()), before })
    }

    /// Reads the figures until every one of `accepted` reactions is accounted for in closed windows, or `limit`.
    pub(super) async fn settle(&mut self, client: &reqwest::Client, accepted: u64, limit: Duration) {
        let until = Instant::now() + limit;
        loop {
            self.after = read(client, &self.url, self.table).await;
            if self.has_settled(accepted) || Instant::now() >= until {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn has_settled(&self, accepted: u64) -> bool {
        let Ok(after) = &self.after else { return false };
        after.iter().all(|now| {
            let before = self.before.iter().find(|before| before.name == now.name);
            let before = before.map_or(0, |before| before.figures.accepted);
            now.figures.open == 0 && now.figures.accepted.saturating_sub(before) >= accepted
        })
    }

    /// Compares the growth with what was `accepted` (202) and what has an `unknown` outcome.
    pub(super) fn verdict(&self, accepted: u64, unknown: u64) -> Verdict {
        let mut verdict = Verdict { queries: Vec::new(), problems: Vec::new() };
        let after = match &self.after {
            Ok(after) => after,
            Err(error) => {
                verdict.problems.push(format!("the figures could not be read at the end: {error}"));
                return verdict;
            }
        };
        if self.before.is_empty() {
            verdict.problems.push(format!("no query reads {}: nothing counts what was sent", self.table));
        }
        for before in &self.before {
            let Some(now) = after.iter().find(|now| now.name == before.name) else {
                verdict.problems.push(format!("query {} is gone", before.name));
                continue;
            };
            let figures = now.figures;
            let grown = figures.accepted.saturating_sub(before.figures.accepted);
            let mut holds = true;
            let mut fail = |problem: String| {
                holds = false;
                verdict.problems.push(format!("query {}: {problem}", now.name));
            };
            if grown < accepted {
                fail(format!("{accepted} reactions were answered 202, but it knows of {grown} only"));
            }
            if !figures.is_conserved() {
                fail(format!("its figures do not add up: {figures:?}"));
            }
            verdict.queries.push(QueryAccount {
                name: now.name.clone(),
                figures,
                grown,
                by_others: grown.saturating_sub(accepted + unknown),
                holds,
            });
        }
        verdict
    }
}

async fn read(client: &reqwest::Client, url: &Url, table: &str) -> Result<Vec<QueryState>, String> {
    let response = client.get(url.clone()).timeout(Duration::from_secs(5)).send().await;
    let response = response.map_err(|error| format!("GET {url}: {}", with_causes(&error.without_url())))?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("GET {url}: {status}"));
    }
    let list: QueryList =
        response.json().await.map_err(|error| format!("GET {url}: {}", with_causes(&error.without_url())))?;
    Ok(list.queries.into_iter().filter(|query| names(&query.text, table)).collect())
}

/// Whether the SQL names the table; the API does not say what a query reads.
fn names(sql: &str, table: &str) -> bool {
    sql.split(|character: char| !character.is_alphanumeric() && character != '_')
        .any(|word| word.eq_ignore_ascii_case(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(accepted: u64, counted: u64, open: u64) -> QueryState {
        let json = format!(
            r#"{{"name":"q","text":"SELECT 1 FROM reactions","version":1,"state":"running","watermark":null,"lag_records":0,
                "accepted":{accepted},"counted":{counted},"filtered":0,"late":0,"future":0,"bad":0,"open":{open},"last_error":null}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn accounts(before: QueryState, after: QueryState) -> Accounts {
        let url = "http://127.0.0.1/v1/queries".parse().unwrap();
        Accounts { url, table: "reactions", before: vec![before], after: Ok(vec![after]) }
    }

    #[test]
    fn what_was_answered_202_is_counted_late_or_open() {
        let verdict = accounts(state(5, 5, 0), state(105, 90, 15)).verdict(100, 0);
        assert_eq!(verdict.problems, Vec::<String>::new());
        assert_eq!((verdict.queries[0].grown, verdict.queries[0].by_others), (100, 0));
    }

    #[test]
    fn a_reaction_that_is_missing_is_a_problem() {
        let verdict = accounts(state(5, 5, 0), state(104, 104, 0)).verdict(100, 0);
        assert!(verdict.problems[0].contains("knows of 99 only"), "{:?}", verdict.problems);
        assert!(!verdict.queries[0].holds);
    }

    #[test]
    fn figures_that_do_not_add_up_are_a_problem() {
        let verdict = accounts(state(0, 0, 0), state(100, 99, 0)).verdict(100, 0);
        assert!(verdict.problems[0].contains("do not add up"), "{:?}", verdict.problems);
    }

    #[test]
    fn more_than_was_sent_came_from_others_unless_an_outcome_is_unknown() {
        let verdict = accounts(state(0, 0, 0), state(130, 130, 0)).verdict(100, 10);
        assert_eq!(verdict.queries[0].by_others, 20);
        assert!(verdict.queries[0].holds);
    }

    #[test]
    fn without_a_query_over_the_table_nothing_is_proven() {
        let url = "http://127.0.0.1/v1/queries".parse().unwrap();
        let accounts = Accounts { url, table: "reactions", before: Vec::new(), after: Ok(Vec::new()) };
        assert_eq!(accounts.verdict(1, 0).problems.len(), 1);
        assert!(names("select * from Reactions;", "reactions"));
        assert!(!names("select reactions_2 from x", "reactions"));
    }
}
