//! How event time is divided, as a window call says it.

use std::fmt;

use datafusion::common::tree_node::TreeNode;
use datafusion::logical_expr::Expr;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use super::functions::{WindowCall, interval_ns, window_call};
use super::refusal::{Anchor, Refusal, refuse};

/// How event time is divided into windows. Tumbling and hopping ones align to the Unix epoch. All spans are in
/// nanoseconds, above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Windowing {
    /// Windows side by side.
    Tumble {
        /// The length of a window.
        width_ns: i64,
    },
    /// Windows that overlap.
    Hop {
        /// From one window's start to the next one's.
        slide_ns: i64,
        /// The length of a window: a multiple of the slide.
        width_ns: i64,
    },
    /// One window per group and burst of rows.
    Session {
        /// A row this long after the last one, or longer, starts a new session.
        gap_ns: i64,
    },
}

impl fmt::Display for Windowing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns: &i64| format!("{} s", *ns as f64 / 1e9);
        match self {
            Self::Tumble { width_ns } => write!(f, "tumble({})", seconds(width_ns)),
            Self::Hop { slide_ns, width_ns } => {
                write!(f, "hop({}, {})", seconds(slide_ns), seconds(width_ns))
            }
            Self::Session { gap_ns } => write!(f, "session({})", seconds(gap_ns)),
        }
    }
}

/// The windowing that a call says, all its spans constant and above zero.
pub(crate) fn windowing(
    call: WindowCall,
    arguments: &[Expr],
    simplifier: &ExprSimplifier,
) -> Result<Windowing, Refusal> {
    let span = |index: usize, what: &str| match arguments.get(index) {
        Some(argument) => span_ns(argument, &format!("{call}'s {what}"), call, simplifier),
        None => refuse(Anchor::Window, format!("{call} lacks its {what}"), call.example()),
    };
    Ok(match call {
        WindowCall::Tumble => Windowing::Tumble { width_ns: span(0, "width")? },
        WindowCall::Session => Windowing::Session { gap_ns: span(0, "gap")? },
        WindowCall::Hop => {
            let (slide_ns, width_ns) = (span(0, "slide")?, span(1, "width")?);
            if width_ns % slide_ns != 0 {
                let message =
                    "hop's width must be a multiple of its slide, so that windows share their parts";
                return refuse(Anchor::Window, message, call.example());
            }
            match width_ns / slide_ns {
                1 => Windowing::Tumble { width_ns },
                2..=MAX_OVERLAP => Windowing::Hop { slide_ns, width_ns },
                overlap => {
                    let message = format!("every row would be in {overlap} windows; at most {MAX_OVERLAP}");
                    return refuse(Anchor::Window, message, "make the slide longer");
                }
            }
        }
    })
}

/// The most windows of one hop that a row may be in: a day by the half minute.
const MAX_OVERLAP: i64 = 2_880;

fn span_ns(span: &Expr, what: &str, call: WindowCall, simplifier: &ExprSimplifier) -> Result<i64, Refusal> {
    match simplifier.simplify(span.clone()) {
        Ok(Expr::Literal(value, _)) => match interval_ns(&value) {
            Ok(span) if span > 0 => Ok(span),
            Ok(_) => refuse(Anchor::Window, format!("{what} must be above zero"), call.example()),
            Err(why) => refuse(Anchor::Window, format!("{what}: {why}"), call.example()),
        },
        _ => refuse(Anchor::Window, format!("{what} must be a constant interval"), call.example()),
    }
}

pub(crate) fn calls_window(expr: &Expr) -> bool {
    // The closure never fails.
    expr.exists(|expr| Ok(window_call(expr).is_some())).unwrap_or(false)
}
