//! `window.start` in the same SELECT as the window call, where SQL knows the alias `window` not yet.
//!
//! `SELECT tumble(w) AS window, window.start … GROUP BY window` becomes `SELECT tumble(w) AS window, tumble(w).start …`;
//! the planner then finds the call among the group expressions.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    AccessExpr, Expr, OrderByKind, Query, Select, SelectItem, SetExpr, TableFactor, Value, VisitMut,
    VisitorMut, visit_expressions_mut,
};

use super::catalog::normalized;
use super::checks::last_name;
use super::functions::TUMBLE;

/// Rewrites every SELECT of the query.
pub(crate) fn window_fields(query: &mut Query) {
    let ControlFlow::Continue(()) = query.visit(&mut Rewrite);
}

struct Rewrite;

impl VisitorMut for Rewrite {
    type Break = std::convert::Infallible;

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        let SetExpr::Select(select) = query.body.as_mut() else { return ControlFlow::Continue(()) };
        let Some((alias, call)) = window_call(select) else { return ControlFlow::Continue(()) };
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                rewrite(expr, &alias, &call);
            }
        }
        for expr in select.having.iter_mut().chain(select.qualify.iter_mut()) {
            rewrite(expr, &alias, &call);
        }
        if let Some(order_by) = &mut query.order_by
            && let OrderByKind::Expressions(exprs) = &mut order_by.kind
        {
            for order in exprs {
                rewrite(&mut order.expr, &alias, &call);
            }
        }
        ControlFlow::Continue(())
    }
}

/// The SELECT's aliased window call, unless FROM already has something of that name.
fn window_call(select: &Select) -> Option<(String, Expr)> {
    let (alias, call) = select.projection.iter().find_map(|item| match item {
        SelectItem::ExprWithAlias { expr: expr @ Expr::Function(function), alias }
            if last_name(&function.name).is_some_and(|(name, _)| name == TUMBLE) =>
        {
            Some((normalized(alias), expr.clone()))
        }
        _ => None,
    })?;
    let names_it = |factor: &TableFactor| match factor {
        TableFactor::Table { name, alias: None, .. } => {
            last_name(name).is_some_and(|(name, _)| name == alias)
        }
        TableFactor::Table { alias: Some(named), .. } | TableFactor::Derived { alias: Some(named), .. } => {
            normalized(&named.name) == alias
        }
        _ => false,
    };
    let shadowed = select.from.iter().any(|table| names_it(&table.relation));
    (!shadowed).then_some((alias, call))
}

fn rewrite(expr: &mut Expr, alias: &str, call: &Expr) {
    let outcome: ControlFlow<()> = visit_expressions_mut(expr, |expr| {
        let Expr::CompoundIdentifier(parts) = &*expr else { return ControlFlow::Continue(()) };
        let [root, field] = parts.as_slice() else { return ControlFlow::Continue(()) };
        let name = normalized(field);
        if normalized(root) == alias && (name == "start" || name == "end") {
            let field = Value::SingleQuotedString(name).with_span(field.span);
            let access = AccessExpr::Dot(Expr::Value(field));
            *expr = Expr::CompoundFieldAccess { root: Box::new(call.clone()), access_chain: vec![access] };
        }
        ControlFlow::Continue(())
    });
    debug_assert!(outcome.is_continue(), "the rewrite visits every part");
}
