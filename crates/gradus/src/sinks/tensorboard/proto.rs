//! Protocol buffers, written by hand: the few fields of TensorBoard's `Event` that we use.
//!
//! Field numbers are those of tensorflow/core/util/event.proto, framework/summary.proto, framework/tensor.proto and
//! tensor_shape.proto; the wire format is protobuf's (varints, 64-bit, length-delimited, 32-bit: types 0, 1, 2, 5).

/// A message being written.
#[derive(Debug, Clone, Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn integer(mut self, field: u64, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn message(self, field: u64, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }
}

/// `Event { wall_time = 1, step = 2 }`, to which one of the following is added.
fn event(wall_time_s: f64, step: u64) -> Message {
    Message::default().double(1, wall_time_s).integer(2, step)
}

/// `Event.file_version = 3`: the first record of a file.
pub fn file_version(wall_time_s: f64) -> Message {
    event(wall_time_s, 0).bytes(3, b"brain.Event:2")
}

/// `Event.session_log = 7 { status = 1: START = 1 }`: what other files say of `step` and later is void.
pub fn session_start(wall_time_s: f64, step: u64) -> Message {
    event(wall_time_s, step).message(7, &Message::default().integer(1, 1))
}

/// `Event.summary = 5 { value = 1 { tag = 1, simple_value = 2 } .. }`, one value for each of `scalars`.
pub fn scalars(wall_time_s: f64, step: u64, scalars: &[(&str, f64)]) -> Message {
    let summary = scalars.iter().fold(Message::default(), |summary, (tag, value)| {
        summary.message(1, &Message::default().bytes(1, tag.as_bytes()).float(2, *value as f32))
    });
    event(wall_time_s, step).message(5, &summary)
}

/// A value of the text plugin: `Summary.Value { tag = 1, metadata = 9 { plugin_data = 1 { plugin_name = 1 } },
/// tensor = 8 { dtype = 1: DT_STRING = 7, tensor_shape = 2 { dim = 2 { size = 1 } }, string_val = 8 } }`.
pub fn text(wall_time_s: f64, step: u64, tag: &str, markdown: &str) -> Message {
    let plugin = Message::default().bytes(1, b"text");
    let metadata = Message::default().message(1, &plugin);
    let shape = Message::default().message(2, &Message::default().integer(1, 1));
    let tensor = Message::default().integer(1, 7).message(2, &shape).bytes(8, markdown.as_bytes());
    let value = Message::default().bytes(1, tag.as_bytes()).message(8, &tensor).message(9, &metadata);
    event(wall_time_s, step).message(5, &Message::default().message(1, &value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_have_seven_bits_a_byte() {
        // The example of protobuf's own description of its encoding: field 1, value 150.
        assert_eq!(Message::default().integer(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::default().bytes(2, b"testing").0, b"\x12\x07testing");
        assert_eq!(Message::default().integer(1, u64::MAX).0.len(), 11);
    }

    #[test]
    fn numbers_are_little_endian_and_fixed() {
        assert_eq!(Message::default().double(1, 1.0).0, [0x09, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F]);
        assert_eq!(Message::default().float(2, 1.0).0, [0x15, 0, 0, 0x80, 0x3F]);
    }
}
