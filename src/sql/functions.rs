//! The functions a query may name: DataFusion's, and the dialect's window calls.
//!
//! `tumble`, `hop` and `session` are planned and never executed: the cut takes them out of the plan (`cut.rs`). They are
//! declared volatile, because the analyser and the optimiser treat a call of constants as a constant otherwise.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimeUnit};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::execution::SessionStateDefaults;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, Expr, HigherOrderUDF, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility, WindowUDF,
};

/// The calls that divide event time into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WindowCall {
    /// `tumble(width)`.
    Tumble,
    /// `hop(slide, width)`.
    Hop,
    /// `session(gap)`.
    Session,
}

impl WindowCall {
    const ALL: [Self; 3] = [Self::Tumble, Self::Hop, Self::Session];

    /// The call of that name, in lower case.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.name() == name)
    }

    /// As SQL writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tumble => "tumble",
            Self::Hop => "hop",
            Self::Session => "session",
        }
    }

    /// What its arguments are, in order.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Tumble => &["width"],
            Self::Hop => &["slide", "width"],
            Self::Session => &["gap"],
        }
    }

    /// What to write.
    pub(crate) fn example(self) -> &'static str {
        match self {
            Self::Tumble => "write tumble(INTERVAL '2 seconds')",
            Self::Hop => "write hop(INTERVAL '2 seconds', INTERVAL '10 seconds'): slide, then width",
            Self::Session => "write session(INTERVAL '30 seconds')",
        }
    }
}

impl std::fmt::Display for WindowCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of a window: `struct<start TIMESTAMP, end TIMESTAMP>`, never null.
pub fn window_type() -> DataType {
    let instant = || DataType::Timestamp(TimeUnit::Nanosecond, None);
    DataType::Struct(Fields::from(vec![
        Field::new("start", instant(), false),
        Field::new("end", instant(), false),
    ]))
}

/// Every function by name and alias, in lower case.
pub(crate) struct Functions {
    pub(crate) scalar: HashMap<String, Arc<ScalarUDF>>,
    pub(crate) higher_order: HashMap<String, Arc<HigherOrderUDF>>,
    pub(crate) aggregate: HashMap<String, Arc<AggregateUDF>>,
    pub(crate) window: HashMap<String, Arc<WindowUDF>>,
    pub(crate) planners: Vec<Arc<dyn ExprPlanner>>,
}

impl Functions {
    /// DataFusion's functions, the window calls, and those of emojis.
    pub(crate) fn new() -> Self {
        let mut scalar = HashMap::new();
        for function in SessionStateDefaults::default_scalar_functions() {
            insert(&mut scalar, function.name().to_owned(), function.aliases().to_vec(), &function);
        }
        for call in WindowCall::ALL {
            let signature = Signature::any(call.arguments().len(), Volatility::Volatile);
            scalar.insert(call.name().to_owned(), Arc::new(ScalarUDF::from(WindowUdf { call, signature })));
        }
        for function in super::emoji::functions() {
            scalar.insert(function.name().to_owned(), Arc::new(function));
        }
        let mut higher_order = HashMap::new();
        for function in SessionStateDefaults::default_higher_order_functions() {
            insert(&mut higher_order, function.name().to_owned(), function.aliases().to_vec(), &function);
        }
        let mut aggregate = HashMap::new();
        for function in SessionStateDefaults::default_aggregate_functions() {
            insert(&mut aggregate, function.name().to_owned(), function.aliases().to_vec(), &function);
        }
        let mut window = HashMap::new();
        for function in SessionStateDefaults::default_window_functions() {
            insert(&mut window, function.name().to_owned(), function.aliases().to_vec(), &function);
        }
        let planners = SessionStateDefaults::default_expr_planners();
        Self { scalar, higher_order, aggregate, window, planners }
    }

    /// Whether any kind of function has that name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.scalar.contains_key(name)
            || self.higher_order.contains_key(name)
            || self.aggregate.contains_key(name)
            || self.window.contains_key(name)
    }

    /// Every name, for suggestions.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let scalar = self.scalar.keys().chain(self.higher_order.keys());
        scalar.chain(self.aggregate.keys()).chain(self.window.keys()).map(String::as_str)
    }
}

fn insert<T>(into: &mut HashMap<String, Arc<T>>, name: String, aliases: Vec<String>, function: &Arc<T>) {
    for name in aliases.into_iter().chain([name]) {
        into.insert(name, Arc::clone(function));
    }
}

/// Which window call the expression is, and its arguments.
pub(crate) fn window_call(expr: &Expr) -> Option<(WindowCall, &[Expr])> {
    match expr {
        Expr::ScalarFunction(ScalarFunction { func, args }) => {
            WindowCall::named(func.name()).map(|call| (call, args.as_slice()))
        }
        _ => None,
    }
}

/// The length of an interval in nanoseconds.
///
/// # Errors
/// Says what was expected: something other than an interval, months (which have no fixed length), or too long a time.
pub(crate) fn interval_ns(value: &ScalarValue) -> Result<i64, String> {
    const NS_PER_DAY: i128 = 86_400_000_000_000;
    let (months, ns) = match value {
        ScalarValue::IntervalMonthDayNano(Some(v)) => {
            (v.months, i128::from(v.days) * NS_PER_DAY + i128::from(v.nanoseconds))
        }
        ScalarValue::IntervalDayTime(Some(v)) => {
            (0, i128::from(v.days) * NS_PER_DAY + i128::from(v.milliseconds) * 1_000_000)
        }
        ScalarValue::IntervalYearMonth(Some(months)) => (*months, 0),
        ScalarValue::DurationNanosecond(Some(v)) => (0, i128::from(*v)),
        ScalarValue::DurationMicrosecond(Some(v)) => (0, i128::from(*v) * 1_000),
        ScalarValue::DurationMillisecond(Some(v)) => (0, i128::from(*v) * 1_000_000),
        ScalarValue::DurationSecond(Some(v)) => (0, i128::from(*v) * 1_000_000_000),
        other => return Err(format!("expected an INTERVAL, found {other}")),
    };
    if months != 0 {
        return Err("months and years have no fixed length; give the interval in days or less".to_owned());
    }
    i64::try_from(ns).map_err(|_| "the interval is longer than 292 years".to_owned())
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowUdf {
    call: WindowCall,
    signature: Signature,
}

impl ScalarUDFImpl for WindowUdf {
    fn name(&self) -> &'static str {
        self.call.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(window_type())
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), window_type(), false)))
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{}() is cut out of the plan and never executed", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_measured_in_nanoseconds_and_months_are_refused() {
        let day_nano = |months, days, nanoseconds| {
            interval_ns(&ScalarValue::new_interval_mdn(months, days, nanoseconds))
        };
        assert_eq!(day_nano(0, 1, 5), Ok(86_400_000_000_005));
        assert_eq!(day_nano(0, 0, -1), Ok(-1));
        assert!(day_nano(1, 0, 0).is_err());
        assert!(day_nano(0, i32::MAX, 0).is_err());
        assert!(interval_ns(&ScalarValue::from("2 seconds")).is_err());
    }
}
