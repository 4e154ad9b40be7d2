//! Partial aggregates put aside: the groups in the order of their keys' hashes, as the values in which they would be
//! saved. Pure.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::Result;
use datafusion::common::hash_utils::{RandomState, create_hashes};

use super::{Parcel, Spill};
use crate::engine::aggregate::Partial;
use crate::engine::snapshot::{Chunk, Shape};

/// As many bytes are put aside, and read again, together: a part of a window takes little of each piece.
const PARCEL_BYTES: usize = 32 << 10;
/// The same in every piece of a process.
const HASH: RandomState = RandomState::with_seed(0x656d_6f73);

/// A part of the groups, by the first bits of their keys' hashes.
pub(crate) type Hashes = RangeInclusive<u16>;

/// What a pane held when there was no room for it.
#[derive(Debug)]
pub(crate) struct Piece {
    spill: Arc<Spill>,
    shape: Shape,
    rows: u64,
    bytes: u64,
    parcels: Vec<OfPiece>,
}

#[derive(Debug)]
struct OfPiece {
    hashes: Hashes,
    parcel: Box<dyn Parcel>,
}

impl Piece {
    /// Puts aside what a pane holds.
    pub(crate) fn new(pane: Chunk, spill: &Arc<Spill>) -> Result<Self> {
        let Chunk { start, rows, partial } = pane;
        let hashes = hashes_of(&partial.keys, partial.groups)?;
        let mut order: Vec<u32> = (0..partial.groups as u32).collect();
        // Stable: groups of one hash stay in their order.
        order.sort_by_key(|&group| hashes[group as usize]);
        let step = (partial.groups * PARCEL_BYTES / partial.size().bytes.max(1)).max(1);
        let shape = Shape { keys: partial.keys.len(), states: partial.states.iter().map(Vec::len).collect() };
        let mut piece = Self { spill: Arc::clone(spill), shape, rows, bytes: 0, parcels: Vec::new() };
        let mut rows_left = rows;
        for groups in order.chunks(step) {
            let rows = std::mem::take(&mut rows_left);
            let part = Chunk { start, rows, partial: partial.taken(groups)? };
            part.encode_each(|of, value| {
                let hash = |place: usize| hashes[groups[place] as usize];
                let parcel = spill.shelf.put(&value)?;
                piece.bytes += value.len() as u64;
                piece.parcels.push(OfPiece { hashes: hash(of.start)..=hash(of.end - 1), parcel });
                Ok(())
            })?;
        }
        Ok(piece)
    }

    /// Where it is.
    pub(in crate::engine) fn spill(&self) -> &Arc<Spill> {
        &self.spill
    }

    /// How many reactions are in it.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// How large it is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many values it is.
    pub(crate) fn values(&self) -> usize {
        self.parcels.len()
    }

    /// One of them, as [`Chunk`]s are saved.
    pub(crate) fn value(&self, place: usize) -> Result<Vec<u8>> {
        Ok(self.parcels[place].parcel.read()?)
    }

    /// The groups whose keys have these hashes, some at a time.
    pub(super) fn within(&self, wanted: &Hashes) -> impl Iterator<Item = Result<Partial>> {
        let is_wanted =
            move |one: &&OfPiece| one.hashes.start() <= wanted.end() && wanted.start() <= one.hashes.end();
        self.parcels.iter().filter(is_wanted).map(move |one| {
            let all = Chunk::decode(&one.parcel.read()?, &self.shape)?.partial;
            if wanted.contains(one.hashes.start()) && wanted.contains(one.hashes.end()) {
                return Ok(all);
            }
            part_of(&all, &hashes_of(&all.keys, all.groups)?, wanted)
        })
    }
}

/// The groups whose keys have these hashes.
pub(super) fn part_of(all: &Partial, hashes: &[u16], wanted: &Hashes) -> Result<Partial> {
    let groups: Vec<u32> =
        (0..).zip(hashes).filter(|(_, hash)| wanted.contains(hash)).map(|(group, _)| group).collect();
    all.taken(&groups)
}

/// The first bits of each group's hash.
pub(super) fn hashes_of(keys: &[ArrayRef], groups: usize) -> Result<Vec<u16>> {
    let keys: Vec<ArrayRef> = keys.iter().map(one_zero).collect();
    let mut hashes = vec![0; groups];
    create_hashes(&keys, &HASH, &mut hashes)?;
    Ok(hashes.into_iter().map(|hash| (hash >> 48) as u16).collect())
}

/// Zero has two signs in floating point, and is one key.
fn one_zero(key: &ArrayRef) -> ArrayRef {
    match key.data_type() {
        DataType::Float32 => {
            Arc::new(key.as_primitive::<Float32Type>().unary::<_, Float32Type>(|x| x + 0.0)) as ArrayRef
        }
        DataType::Float64 => Arc::new(key.as_primitive::<Float64Type>().unary::<_, Float64Type>(|x| x + 0.0)),
        _ => Arc::clone(key),
    }
}
