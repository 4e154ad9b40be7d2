//! DataFusion's planning errors → findings with a place.
//!
//! DataFusion places few of its errors. Where it does not, the finding points at the first part of the query that the message
//! names, and otherwise at the query's first word.

use std::ops::ControlFlow;

use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::ast::{
    Distinct, Expr, GroupByExpr, Query, Select, SelectItem, SetExpr, Spanned, Visit, Visitor,
    visit_expressions, visit_relations,
};
use datafusion::sql::sqlparser::tokenizer::{Location, Span};

use super::checks::last_name;
use super::diagnostic::Finding;
use super::functions::WindowCall;
use super::refusal::{Anchor, Refusal};
use crate::reaction::table::IMPLIED_EVENT_TIME;

/// What DataFusion found wrong with a query. `own_places` is false when its places may lie in another text (a view's).
pub(crate) fn finding(error: &DataFusionError, query: &Query, own_places: bool) -> Finding {
    let place = place_of(error).filter(|_| own_places);
    let root = error.find_root();
    if let DataFusionError::SchemaError(schema_error, _) = root
        && let SchemaError::FieldNotFound { field, valid_fields } = schema_error.as_ref()
    {
        let at = place.unwrap_or_else(|| named(query, &field.name));
        let finding = Finding::error(at, format!("unknown column '{}'", field.flat_name()));
        let mut names: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
        names.retain(|name| *name != IMPLIED_EVENT_TIME);
        names.sort_unstable();
        names.dedup();
        return finding.help_nearest(&field.name, "columns", names);
    }
    // A diagnostic without a place says less than the error it comes with.
    let message = match error.diagnostic().filter(|diagnostic| diagnostic.span.is_some()) {
        Some(diagnostic) => diagnostic.message.clone(),
        None => message_of(root),
    };
    let at = place.unwrap_or_else(|| named(query, &message));
    let finding = Finding::error(at, readable(&message));
    match help_of(error) {
        Some(help) => finding.help(help),
        None if message.ends_with("not found in struct") => finding.help("a window has start and end"),
        None => finding,
    }
}

/// A refusal of the cut, at its place in the query.
pub(crate) fn refusal(refusal: Refusal, query: &Query) -> Finding {
    let at = match refusal.at {
        Anchor::Window => window_call(query),
        Anchor::Join => joined(query),
        Anchor::Table => table(query, &refusal.message),
        Anchor::Innermost => grouping(query, false),
        Anchor::Outermost => grouping(query, true),
        Anchor::Function => called(query, &refusal.message),
        Anchor::Query => None,
    };
    Finding::error(at.unwrap_or_else(|| first_word(query)), refusal.message).help(refusal.help)
}

/// The place of the query's `index`-th output column, from 0.
pub(crate) fn output_column(query: &Query, index: usize) -> Span {
    let placed = match query.body.as_ref() {
        SetExpr::Select(select) => {
            let plain = |item: &SelectItem| {
                matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. })
            };
            let items = select.projection.get(..=index).filter(|items| items.iter().all(plain));
            items.and_then(|items| items.last()).map(Spanned::span)
        }
        SetExpr::Query(query) => Some(output_column(query, index)),
        _ => None,
    };
    placed.filter(is_placed).unwrap_or_else(|| first_word(query))
}

fn is_placed(span: &Span) -> bool {
    *span != Span::empty()
}

pub(crate) fn first_word(query: &Query) -> Span {
    match &query.with {
        Some(with) => with.with_token.0.span,
        None => match query.body.as_ref() {
            SetExpr::Select(select) => select.select_token.0.span,
            SetExpr::Query(query) => first_word(query),
            other => other.span(),
        },
    }
}

fn place_of(error: &DataFusionError) -> Option<Span> {
    let diagnostic = error.diagnostic()?;
    let span = diagnostic.span.or_else(|| diagnostic.notes.iter().find_map(|note| note.span))?;
    let place = |at: datafusion::common::Location| Location { line: at.line, column: at.column };
    Some(Span { start: place(span.start), end: place(span.end) })
}

fn help_of(error: &DataFusionError) -> Option<String> {
    let diagnostic = error.diagnostic()?;
    diagnostic.helps.first().map(|help| readable(&help.message))
}

fn message_of(root: &DataFusionError) -> String {
    let text = match root {
        DataFusionError::Plan(text) | DataFusionError::NotImplemented(text) => text.clone(),
        other => other.strip_backtrace(),
    };
    let end = text.find(DataFusionError::BACK_TRACE_SEP).unwrap_or(text.len());
    let line = text[..end].trim().lines().next().unwrap_or_default();
    // What follows is one complaint for every form of the function.
    let (line, _) = line.split_once(", errors: ").unwrap_or((line, ""));
    let line = line.strip_prefix("Internal error: ").unwrap_or(line);
    line.trim_end_matches('.').to_owned()
}

/// What a computation says of its failure, without the names of the layers that it came through.
pub(crate) fn reason(error: &DataFusionError) -> String {
    const LAYERS: [&str; 6] = [
        "Arrow error: ",
        "Parser error: ",
        "Cast error: ",
        "Execution error: ",
        "Assertion failed: ",
        "Internal error: ",
    ];
    let said = message_of(error.find_root());
    let mut said = said.as_str();
    while let Some(inner) = LAYERS.iter().find_map(|layer| said.strip_prefix(layer)) {
        said = inner;
    }
    said.trim_end_matches(" error").to_owned()
}

/// DataFusion prints an interval as its Rust value, and wraps what a function says of its arguments.
fn readable(message: &str) -> String {
    const WRAPPED: &str = "coercion failed with: Error during planning: ";
    const OPEN: &str = "IntervalMonthDayNano(\"IntervalMonthDayNano {";
    const CLOSE: &str = "}\")";
    let said = message.split_once(WRAPPED).map(|(_, said)| said.split(". No function matches").next());
    let mut text = said.flatten().unwrap_or(message).to_owned();
    while let Some(start) = text.find(OPEN)
        && let Some(length) = text[start..].find(CLOSE)
    {
        text.replace_range(start..start + length + CLOSE.len(), "INTERVAL …");
    }
    text
}

/// The first identifier or function of the query that the message names as a word; the query's first word when it names none.
fn named(query: &Query, message: &str) -> Span {
    let words: Vec<String> = message
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| word.len() > 1)
        .map(str::to_lowercase)
        .collect();
    let conditions = if message.contains("predicate") { conditions(query) } else { vec![] };
    let placed = conditions.iter().find_map(|condition| first_named(condition, &words));
    placed.or_else(|| first_named(query, &words)).unwrap_or_else(|| first_word(query))
}

/// Every WHERE and HAVING of the query.
fn conditions(query: &Query) -> Vec<Expr> {
    struct Conditions(Vec<Expr>);
    impl Visitor for Conditions {
        type Break = std::convert::Infallible;
        fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
            self.0.extend(select.selection.iter().chain(&select.having).cloned());
            ControlFlow::Continue(())
        }
    }
    let mut conditions = Conditions(vec![]);
    let ControlFlow::Continue(()) = query.visit(&mut conditions);
    conditions.0
}

fn first_named<V: Visit>(part: &V, words: &[String]) -> Option<Span> {
    let found = visit_expressions(part, |expr| {
        let named = match expr {
            Expr::Identifier(ident) => Some((ident.value.to_lowercase(), ident.span)),
            Expr::CompoundIdentifier(parts) => {
                parts.last().map(|ident| (ident.value.to_lowercase(), expr.span()))
            }
            Expr::Function(function) => last_name(&function.name),
            _ => None,
        };
        match named {
            Some((name, at)) if words.contains(&name) && is_placed(&at) => ControlFlow::Break(at),
            _ => ControlFlow::Continue(()),
        }
    });
    match found {
        ControlFlow::Break(at) => Some(at),
        ControlFlow::Continue(()) => None,
    }
}

/// The first table that is joined to another.
fn joined(query: &Query) -> Option<Span> {
    struct Joined(Option<Span>);
    impl Visitor for Joined {
        type Break = std::convert::Infallible;
        fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
            let joins = select.from.iter().flat_map(|table| &table.joins);
            self.0 = self.0.or_else(|| joins.map(|join| join.relation.span()).find(is_placed));
            ControlFlow::Continue(())
        }
    }
    let mut joined = Joined(None);
    let ControlFlow::Continue(()) = query.visit(&mut joined);
    joined.0
}

/// The first table in FROM whose name the message quotes first.
fn table(query: &Query, message: &str) -> Option<Span> {
    let quoted = message.split('\'').nth(1)?;
    let found = visit_relations(query, |name| match last_name(name) {
        Some((name, at)) if name == quoted => ControlFlow::Break(at),
        _ => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Break(at) => Some(at),
        ControlFlow::Continue(()) => None,
    }
}

/// The first window call.
fn window_call(query: &Query) -> Option<Span> {
    let found = visit_expressions(query, |expr| match expr {
        Expr::Function(function) => match last_name(&function.name) {
            Some((name, at)) if WindowCall::named(&name).is_some() => ControlFlow::Break(at),
            _ => ControlFlow::Continue(()),
        },
        _ => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Break(at) => Some(at),
        ControlFlow::Continue(()) => None,
    }
}

/// The first function whose name the message begins with.
fn called(query: &Query, message: &str) -> Option<Span> {
    let found = visit_expressions(query, |expr| match expr {
        Expr::Function(function) => match last_name(&function.name) {
            Some((name, at)) if message.split([' ', ':']).next() == Some(&name) => ControlFlow::Break(at),
            _ => ControlFlow::Continue(()),
        },
        _ => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Break(at) => Some(at),
        ControlFlow::Continue(()) => None,
    }
}

/// The GROUP BY, DISTINCT, OVER or aggregate of the outermost or innermost SELECT that has one.
fn grouping(query: &Query, outermost: bool) -> Option<Span> {
    struct Groupings(Vec<Span>);
    impl Visitor for Groupings {
        type Break = std::convert::Infallible;
        fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
            self.0.extend(grouping_of(select));
            ControlFlow::Continue(())
        }
    }
    let mut groupings = Groupings(vec![]);
    let ControlFlow::Continue(()) = query.visit(&mut groupings);
    if outermost { groupings.0.first().copied() } else { groupings.0.last().copied() }
}

fn grouping_of(select: &Select) -> Option<Span> {
    if let GroupByExpr::Expressions(exprs, _) = &select.group_by
        && let Some(first) = exprs.first().map(Spanned::span).filter(is_placed)
    {
        return Some(first);
    }
    if let Some(Distinct::Distinct | Distinct::On(_)) = &select.distinct {
        return Some(select.select_token.0.span);
    }
    // Of the SELECT list only: a sub-select in FROM is a SELECT of its own.
    let found = visit_expressions(&select.projection, |expr| match expr {
        Expr::Function(function)
            if last_name(&function.name).is_some_and(|(name, _)| WindowCall::named(&name).is_none()) =>
        {
            ControlFlow::Break(expr.span())
        }
        _ => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Break(at) => Some(at),
        ControlFlow::Continue(()) => None,
    }
}
