//! Pages of a Parquet column as they are decoded, held against what their decoder takes for granted.
//!
//! The decoder takes the length of a text from four bytes without asking whether there are four, makes room for as many
//! entries as a dictionary says it has, and expects a dictionary where a page needs one: damaged pages would end the process.
//! So behind the last text come bytes that no length can have, which the decoder refuses, and the rest is checked here.

use ::parquet::basic::{Encoding, Type};
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::ParquetError;
use bytes::{Bytes, BytesMut};

/// Bytes of a text's length, and the fewest of an entry of a dictionary.
const LENGTH_BYTES: usize = 4;

/// Pages of another reader, checked.
pub(super) struct Guarded<R> {
    pub(super) pages: R,
    pub(super) kind: Type,
    /// Whether values may be missing, which levels say.
    pub(super) optional: bool,
    pub(super) has_dictionary: bool,
}

impl<R: PageReader> Guarded<R> {
    fn check(&mut self, mut page: Page) -> Result<Page, ParquetError> {
        let damaged = |why: &str| Err(ParquetError::General(why.to_owned()));
        match &mut page {
            Page::DictionaryPage { buf, num_values, .. } => {
                if *num_values as usize > buf.len() / LENGTH_BYTES {
                    return damaged("a dictionary is shorter than its entries");
                }
                self.has_dictionary = true;
                self.end(buf, 0)?;
            }
            Page::DataPage { buf, num_values, encoding, def_level_encoding, .. } => {
                if self.lacks_dictionary(*encoding) {
                    return damaged("a page needs a dictionary, and there is none");
                }
                if *encoding == Encoding::PLAIN {
                    let levels =
                        if self.optional { levels_of(buf, *num_values, *def_level_encoding) } else { 0 };
                    self.end(buf, levels)?;
                }
            }
            Page::DataPageV2 { buf, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
                if self.lacks_dictionary(*encoding) {
                    return damaged("a page needs a dictionary, and there is none");
                }
                let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
                if levels > buf.len() as u64 {
                    return damaged("the levels of a page are not within it");
                }
                if *encoding == Encoding::PLAIN {
                    self.end(buf, levels as usize)?;
                }
            }
        }
        Ok(page)
    }

    fn lacks_dictionary(&self, encoding: Encoding) -> bool {
        #[allow(deprecated, reason = "files have it all the same")]
        let needs = [Encoding::RLE_DICTIONARY, Encoding::PLAIN_DICTIONARY].contains(&encoding);
        needs && !self.has_dictionary
    }

    /// Ends texts, which begin after the levels, with a length that is too large for any page.
    fn end(&self, buf: &mut Bytes, levels: usize) -> Result<(), ParquetError> {
        if self.kind != Type::BYTE_ARRAY {
            return Ok(());
        }
        let mut left = buf.get(levels..);
        while let Some(texts) = left.filter(|texts| !texts.is_empty()) {
            let length =
                texts.first_chunk().map_or(usize::MAX, |length| u32::from_le_bytes(*length) as usize);
            left = length.checked_add(LENGTH_BYTES).and_then(|bytes| texts.get(bytes..));
        }
        if left.is_none() {
            return Err(ParquetError::General("a page ends within a text".to_owned()));
        }
        let mut ended = BytesMut::with_capacity(buf.len() + LENGTH_BYTES);
        ended.extend_from_slice(buf);
        ended.extend_from_slice(&[0xff; LENGTH_BYTES]);
        *buf = ended.freeze();
        Ok(())
    }
}

/// Bytes of the levels at the beginning of a page of the first version: a length and as many, or a bit for each value.
fn levels_of(buf: &[u8], values: u32, encoding: Encoding) -> usize {
    match (encoding, buf.first_chunk()) {
        (Encoding::RLE, Some(length)) => (u32::from_le_bytes(*length) as usize).saturating_add(LENGTH_BYTES),
        (Encoding::RLE, None) => usize::MAX,
        _ => values.div_ceil(8) as usize,
    }
}

impl<R: PageReader> PageReader for Guarded<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        self.pages.get_next_page()?.map(|page| self.check(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.pages.skip_next_page()
    }
}

impl<R: PageReader> Iterator for Guarded<R> {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::parquet::column::reader::ColumnReaderImpl;
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::schema::types::{ColumnDescriptor, ColumnPath, Type as SchemaType};
    use std::sync::Arc;

    struct Pages(std::vec::IntoIter<Page>);

    impl Iterator for Pages {
        type Item = Result<Page, ParquetError>;

        fn next(&mut self) -> Option<Self::Item> {
            self.get_next_page().transpose()
        }
    }

    impl PageReader for Pages {
        fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
            Ok(self.0.next())
        }

        fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
            Ok(None)
        }

        fn skip_next_page(&mut self) -> Result<(), ParquetError> {
            Ok(())
        }
    }

    fn data(buf: &[u8], num_values: u32, encoding: Encoding) -> Page {
        let buf = Bytes::copy_from_slice(buf);
        let (def_level_encoding, rep_level_encoding) = (Encoding::RLE, Encoding::RLE);
        Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, statistics: None }
    }

    fn dictionary(buf: &[u8], num_values: u32) -> Page {
        let buf = Bytes::copy_from_slice(buf);
        Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, is_sorted: false }
    }

    /// The texts of some pages.
    fn texts(pages: Vec<Page>) -> Result<Vec<ByteArray>, ParquetError> {
        let value = SchemaType::primitive_type_builder("value", Type::BYTE_ARRAY)
            .with_repetition(::parquet::basic::Repetition::REQUIRED)
            .build()?;
        let descriptor = ColumnDescriptor::new(Arc::new(value), 0, 0, ColumnPath::from("value"));
        let pages = Guarded {
            pages: Pages(pages.into_iter()),
            kind: Type::BYTE_ARRAY,
            optional: false,
            has_dictionary: false,
        };
        let mut reader = ColumnReaderImpl::<ByteArrayType>::new(Arc::new(descriptor), Box::new(pages));
        let mut values = Vec::new();
        reader.read_records(10, None, None, &mut values).map(|_| values)
    }

    const TWO: [u8; 11] = *b"\x01\0\0\0a\x02\0\0\0bc";

    #[test]
    fn texts_that_are_cut_are_refused() {
        assert_eq!(texts(vec![data(&TWO, 2, Encoding::PLAIN)]).unwrap().len(), 2);
        let indices = data(&[1, 4, 1], 2, Encoding::RLE_DICTIONARY);
        assert_eq!(texts(vec![dictionary(&TWO, 2), indices.clone()]).unwrap().len(), 2);
        for cut in 0..TWO.len() {
            assert!(texts(vec![data(&TWO[..cut], 2, Encoding::PLAIN)]).is_err(), "{cut}");
            assert!(texts(vec![dictionary(&TWO[..cut], 2), indices.clone()]).is_err(), "{cut}");
        }
        assert!(texts(vec![data(&TWO, 3, Encoding::PLAIN)]).is_err());
    }

    #[test]
    fn dictionaries_are_there_and_as_large_as_they_say() {
        let indices = data(&[1, 4, 1], 2, Encoding::RLE_DICTIONARY);
        assert!(texts(vec![indices.clone()]).is_err());
        assert!(texts(vec![dictionary(&TWO, u32::MAX), indices]).is_err());
    }
}
