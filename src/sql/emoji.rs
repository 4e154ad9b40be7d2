//! `emoji_base`, `emoji_name`, `emoji_group` and `emoji_sentiment`: what [`crate::reaction::emoji`] knows, as functions
//! of SQL.
//!
//! Each takes one text and is null for a null. The engine evaluates an expression over one dictionary-encoded column once
//! per distinct value, so that value by value is fast enough here.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::reaction::emoji;

/// All four.
pub(crate) fn functions() -> impl Iterator<Item = ScalarUDF> {
    [Fact::Base, Fact::Name, Fact::Group, Fact::Sentiment].into_iter().map(|fact| {
        ScalarUDF::from(EmojiFunction { fact, signature: Signature::user_defined(Volatility::Immutable) })
    })
}

/// What is asked of an emoji.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fact {
    Base,
    Name,
    Group,
    Sentiment,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct EmojiFunction {
    fact: Fact,
    signature: Signature,
}

impl ScalarUDFImpl for EmojiFunction {
    fn name(&self) -> &'static str {
        match self.fact {
            Fact::Base => "emoji_base",
            Fact::Name => "emoji_name",
            Fact::Group => "emoji_group",
            Fact::Sentiment => "emoji_sentiment",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [given] if is_text(given) => Ok(vec![DataType::Utf8]),
            [given] => plan_err!("{} takes text, found {given}", self.name()),
            _ => plan_err!("{} takes one text, found {} arguments", self.name(), arg_types.len()),
        }
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(match self.fact {
            Fact::Base | Fact::Name | Fact::Group => DataType::Utf8,
            Fact::Sentiment => DataType::Float64,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [texts] = arrays.as_slice() else { return plan_err!("{} takes one text", self.name()) };
        let texts = texts.as_string::<i32>().iter();
        let facts: ArrayRef = match self.fact {
            Fact::Base => Arc::new(texts.map(|text| text.map(emoji::base)).collect::<StringArray>()),
            Fact::Name => Arc::new(texts.map(|text| text.and_then(emoji::name)).collect::<StringArray>()),
            Fact::Group => Arc::new(texts.map(|text| text.and_then(emoji::group)).collect::<StringArray>()),
            Fact::Sentiment => {
                Arc::new(texts.map(|text| text.and_then(emoji::sentiment)).collect::<Float64Array>())
            }
        };
        Ok(ColumnarValue::Array(facts))
    }
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_text(values),
        plain => plain.is_string() || plain.is_null(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, DictionaryArray, LargeStringArray, RecordBatch, StringViewArray};
    use arrow::datatypes::Int32Type;
    use datafusion::prelude::SessionContext;

    use super::*;

    #[tokio::test]
    async fn every_kind_of_text_gives_the_same_facts_and_null_stays_null() {
        let given = [Some("👍🏽"), None, Some("❤️"), Some("so what")];
        let texts: [ArrayRef; 4] = [
            Arc::new(StringArray::from_iter(given)),
            Arc::new(LargeStringArray::from_iter(given)),
            Arc::new(StringViewArray::from_iter(given)),
            Arc::new(DictionaryArray::<Int32Type>::from_iter(given)),
        ];
        for texts in texts {
            let context = SessionContext::new();
            functions().for_each(|function| context.register_udf(function));
            let kind = texts.data_type().clone();
            context.register_batch("t", RecordBatch::try_from_iter([("e", texts)]).unwrap()).unwrap();
            let sql = "SELECT emoji_base(e), emoji_name(e), emoji_group(e), emoji_sentiment(e) > 0.5 FROM t";
            let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
            let text = |column: usize| rows[0].column(column).as_string::<i32>().iter().collect::<Vec<_>>();
            assert_eq!(text(0), [Some("👍"), None, Some("❤"), Some("so what")], "{kind}");
            assert_eq!(text(1), [Some("thumbs up"), None, Some("red heart"), None], "{kind}");
            assert_eq!(text(2), [Some("People & Body"), None, Some("Smileys & Emotion"), None], "{kind}");
            let happy = rows[0].column(3).as_boolean().iter().collect::<Vec<_>>();
            assert_eq!(happy, [Some(true), None, Some(true), None], "{kind}");
        }
    }
}
