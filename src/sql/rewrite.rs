//! `window.start` in the same SELECT as the window call, where SQL knows the alias `window` not yet.
//!
//! `SELECT tumble(w) AS window, window.start … GROUP BY window` becomes `SELECT tumble(w) AS window, tumble(w).start …`;
//! the planner then finds the call among the group expressions.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    AccessExpr, Expr, Ident, OrderByKind, Query, Select, SelectItem, SetExpr, TableFactor, Value, VisitMut,
    VisitorMut, visit_expressions_mut,
};

use super::catalog::normalized;
use super::checks::last_name;
use super::functions::WindowCall;

/// Rewrites every SELECT of the query.
pub(crate) fn window_fields(query: &mut Query) {
    let ControlFlow::Continue(()) = query.visit(&mut Rewrite);
}

/// Names the columns of an INSERT's SELECT that have no name and say what another one says: the planner wants each
/// name once, an INSERT goes by position and does not care.
pub(crate) fn unique_outputs(query: &mut Query) {
    unique_outputs_of(query.body.as_mut());
}

fn unique_outputs_of(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => {
            let mut seen: Vec<Expr> = Vec::new();
            for (index, item) in select.projection.iter_mut().enumerate() {
                let SelectItem::UnnamedExpr(expr) = item else { continue };
                if seen.contains(expr) {
                    let alias = Ident::new(format!("column_{}", index + 1));
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                } else {
                    seen.push(expr.clone());
                }
            }
        }
        SetExpr::Query(query) => unique_outputs(query),
        SetExpr::SetOperation { left, right, .. } => {
            unique_outputs_of(left);
            unique_outputs_of(right);
        }
        _ => {}
    }
}

struct Rewrite;

impl VisitorMut for Rewrite {
    type Break = std::convert::Infallible;

    /// `tumble(…).start`: the planner takes the field's name as text only.
    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        if let Expr::CompoundFieldAccess { root, access_chain } = expr
            && matches!(root.as_ref(), Expr::Function(_))
        {
            for access in access_chain {
                if let AccessExpr::Dot(field @ Expr::Identifier(_)) = access
                    && let Expr::Identifier(ident) = field
                {
                    *field = field_name(ident);
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<Self::Break> {
        let Some((alias, call)) = window_call(select) else { return ControlFlow::Continue(()) };
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                rewrite(expr, &alias, &call);
            }
        }
        for expr in select.having.iter_mut().chain(select.qualify.iter_mut()) {
            rewrite(expr, &alias, &call);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        let SetExpr::Select(select) = query.body.as_ref() else { return ControlFlow::Continue(()) };
        let Some((alias, call)) = window_call(select) else { return ControlFlow::Continue(()) };
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
            if last_name(&function.name).is_some_and(|(name, _)| WindowCall::named(&name).is_some()) =>
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

fn field_name(ident: &Ident) -> Expr {
    Expr::Value(Value::SingleQuotedString(normalized(ident)).with_span(ident.span))
}

fn rewrite(expr: &mut Expr, alias: &str, call: &Expr) {
    let outcome: ControlFlow<()> = visit_expressions_mut(expr, |expr| {
        let Expr::CompoundIdentifier(parts) = &*expr else { return ControlFlow::Continue(()) };
        let [root, field] = parts.as_slice() else { return ControlFlow::Continue(()) };
        let name = normalized(field);
        if normalized(root) == alias && (name == "start" || name == "end") {
            let access = AccessExpr::Dot(field_name(field));
            *expr = Expr::CompoundFieldAccess { root: Box::new(call.clone()), access_chain: vec![access] };
        }
        ControlFlow::Continue(())
    });
    debug_assert!(outcome.is_continue(), "the rewrite visits every part");
}
