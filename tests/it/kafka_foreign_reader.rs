//! Reaction records on Kafka are plain: a bare consumer and Arrow's own reader understand them without this crate.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::ipc::reader::StreamReader;
use emostream::log::codec::RecordCodec;
use emostream::log::{Log, Retention, TopicSpec};
use emostream::sql::{SqlFile, plan_program};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::Instant;

use crate::support::kafka::{bootstrap_servers, connect, fresh};

fn reactions() -> RecordBatch {
    let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let schema = Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("emoji_type", DataType::Utf8, false),
        Field::new("timestamp", time, false),
        Field::new("weight", DataType::Int64, true),
    ]);
    let users: Vec<String> = (0..100).map(|n| format!("user-{n}")).collect();
    let emojis: Vec<&str> = (0..100).map(|n| ["😀", "🔥", "👏🏽"][n % 3]).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(users)),
        Arc::new(StringArray::from(emojis)),
        Arc::new(TimestampNanosecondArray::from_iter_values((0..100).map(|n| 1_700_000_000_000_000_000 + n))),
        Arc::new((0..100).map(|n| (n % 2 == 0).then_some(n)).collect::<Int64Array>()),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

fn codec() -> RecordCodec {
    let text = "CREATE TABLE reactions (user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, timestamp TIMESTAMP NOT NULL, weight BIGINT,
                WATERMARK FOR timestamp) WITH (connector = 'kafka', type = 'source', format = 'arrow')";
    let program = plan_program(&[SqlFile { name: "tables.sql".to_owned(), text: text.to_owned() }]).unwrap();
    RecordCodec::new(&program.tables[0])
}

/// What a program that knows Kafka and Arrow only would do: headers, value.
fn consume(topic: &str) -> (Vec<(String, String)>, Vec<u8>) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap_servers()).set("group.id", fresh("foreign"));
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(20), "no record came");
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.unwrap();
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        let headers = message.headers().unwrap().iter().map(|h| (h.key.to_owned(), text(h.value))).collect();
        return (headers, message.payload().unwrap().to_vec());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_not_ours_reads_reactions_from_kafka() {
    let log = connect().await;
    let topic = fresh("reactions");
    let retention = Retention::Age(Duration::from_secs(3600));
    let spec = TopicSpec { name: topic.clone(), partitions: 1, retention, log_append_time: false };
    log.create_topics(&[spec]).await.unwrap();
    let sent = reactions();
    log.append(&topic, 0, vec![codec().encode(&sent).unwrap().remove(0)]).await.unwrap();

    let (headers, value) = tokio::task::spawn_blocking(move || consume(&topic)).await.unwrap();
    assert!(headers.contains(&("content-type".to_owned(), "application/vnd.apache.arrow.stream".to_owned())));
    assert!(headers.contains(&("rows".to_owned(), "100".to_owned())));
    let batches: Vec<RecordBatch> =
        StreamReader::try_new(Cursor::new(value), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.len(), 1);
    let got = &batches[0];
    assert_eq!(got.num_rows(), 100);
    for (place, field) in sent.schema().fields().iter().enumerate() {
        assert_eq!(got.schema().field(place).name(), field.name());
        // Text may be stored as a dictionary; any Arrow library turns that back.
        let plain = cast(got.column(place), field.data_type()).unwrap();
        assert_eq!(plain.to_data(), sent.column(place).to_data(), "{}", field.name());
    }
    assert_eq!(cast(got.column(1), &DataType::Utf8).unwrap().as_string::<i32>().value(2), "👏🏽");
}
