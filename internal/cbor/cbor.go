// Package cbor writes and reads the part of CBOR (RFC 8949) that muster's small
// programs speak, in the core deterministic encoding: numbers in their shortest
// form, definite lengths, maps with sorted keys. What is encoded otherwise is
// refused, so that a value has one form on the wire.
//
// It is small on purpose: a general library is a sixth of the small agent.
//
//	b := cbor.AppendArray(nil, 2)
//	b = cbor.AppendUint(b, 7)
//	b = cbor.AppendText(b, "web1")
//
//	r := cbor.NewReader(b)
//	r.Array(2)
//	n, name := r.Uint(), r.Text(128)
//	if !r.End() { ... }
//
// After the first mistake a Reader yields zero values and End is false, so that
// a decoder asks once, at its end.
package cbor

import (
	"encoding/binary"
	"math"
	"sort"
	"unicode/utf8"
)

// The major types, and the simple values in use.
const (
	majorUint  byte = 0 << 5
	majorNeg   byte = 1 << 5
	majorBytes byte = 2 << 5
	majorText  byte = 3 << 5
	majorArray byte = 4 << 5
	majorMap   byte = 5 << 5

	simpleFalse byte = 0xf4
	simpleTrue  byte = 0xf5
	simpleNull  byte = 0xf6
	float64Head byte = 0xfb
)

const maxDepth = 16 // of values within values, in Value

// AppendUint appends an unsigned number.
func AppendUint(b []byte, v uint64) []byte { return appendHead(b, majorUint, v) }

// AppendInt appends a number.
func AppendInt(b []byte, v int64) []byte {
	if v < 0 {
		return appendHead(b, majorNeg, uint64(^v))
	}
	return appendHead(b, majorUint, uint64(v))
}

// AppendBytes appends a byte string.
func AppendBytes(b, v []byte) []byte { return append(appendHead(b, majorBytes, uint64(len(v))), v...) }

// AppendText appends a text, with U+FFFD for what is not UTF-8.
func AppendText(b []byte, v string) []byte {
	if !utf8.ValidString(v) {
		v = string([]rune(v))
	}
	return append(appendHead(b, majorText, uint64(len(v))), v...)
}

// AppendBool appends a truth value.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, simpleTrue)
	}
	return append(b, simpleFalse)
}

// AppendNull appends null.
func AppendNull(b []byte) []byte { return append(b, simpleNull) }

// AppendArray begins an array of n items, which have to follow.
func AppendArray(b []byte, n int) []byte { return appendHead(b, majorArray, uint64(n)) }

// AppendTexts appends an array of texts.
func AppendTexts(b []byte, list []string) []byte {
	b = AppendArray(b, len(list))
	for _, s := range list {
		b = AppendText(b, s)
	}
	return b
}

// AppendValue appends what JSON knows: nil, bool, int, int64, uint64, float64,
// string, []any and map[string]any, and null for anything else. A number with a
// fraction has eight bytes, and is thereby not in the shortest form.
func AppendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case bool:
		return AppendBool(b, v)
	case int:
		return AppendInt(b, int64(v))
	case int64:
		return AppendInt(b, v)
	case uint64:
		return AppendUint(b, v)
	case float64:
		return binary.BigEndian.AppendUint64(append(b, float64Head), math.Float64bits(v))
	case string:
		return AppendText(b, v)
	case []any:
		b = AppendArray(b, len(v))
		for _, item := range v {
			b = AppendValue(b, item)
		}
		return b
	case map[string]any:
		b = appendHead(b, majorMap, uint64(len(v)))
		keys := make([]string, 0, len(v))
		for key := range v {
			keys = append(keys, key)
		}
		sort.Sort(byEncoding(keys))
		for _, key := range keys {
			b = AppendValue(AppendText(b, key), v[key])
		}
		return b
	}
	return AppendNull(b)
}

// byEncoding is sorted by package sort, of which regexp has small programs link
// the one copy that there is; package slices has one for each type.
type byEncoding []string

func (l byEncoding) Len() int           { return len(l) }
func (l byEncoding) Less(i, j int) bool { return compareKeys(l[i], l[j]) < 0 }
func (l byEncoding) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }

// compareKeys orders texts as their encodings are ordered: short ones first.
func compareKeys(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func appendHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n <= math.MaxUint8:
		return append(b, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

// A Reader takes an encoding apart.
type Reader struct {
	rest []byte
	bad  bool
}

// NewReader returns a reader of data, which must not change while it is in use.
func NewReader(data []byte) *Reader { return &Reader{rest: data} }

// End reports whether everything was read, and was as expected.
func (r *Reader) End() bool { return !r.bad && len(r.rest) == 0 }

// Rest returns what was not read yet.
func (r *Reader) Rest() []byte { return r.rest }

// Fail notes that what was read is not what the caller can use.
func (r *Reader) Fail() { r.bad, r.rest = true, nil }

// OK reports whether everything was as expected so far.
func (r *Reader) OK() bool { return !r.bad }

// Uint reads an unsigned number.
func (r *Reader) Uint() uint64 { return r.expect(majorUint) }

// UintUpTo reads an unsigned number of at most so much.
func (r *Reader) UintUpTo(most uint64) uint64 {
	n := r.expect(majorUint)
	if n > most {
		r.Fail()
		return 0
	}
	return n
}

// Int reads a number.
func (r *Reader) Int() int64 {
	major, n := r.head()
	switch {
	case n > math.MaxInt64:
	case major == majorUint:
		return int64(n)
	case major == majorNeg:
		return ^int64(n)
	}
	r.Fail()
	return 0
}

// Bytes reads a byte string of at most so many bytes. It shares the data's memory.
func (r *Reader) Bytes(most int) []byte { return r.take(majorBytes, most) }

// Fixed reads a byte string of exactly the length of dst.
func (r *Reader) Fixed(dst []byte) {
	if b := r.take(majorBytes, len(dst)); copy(dst, b) != len(dst) {
		r.Fail()
	}
}

// Text reads a text of at most so many bytes.
func (r *Reader) Text(most int) string {
	b := r.take(majorText, most)
	if !utf8.Valid(b) {
		r.Fail()
		return ""
	}
	return string(b)
}

// Bool reads a truth value.
func (r *Reader) Bool() bool {
	switch {
	case r.next(simpleTrue):
		return true
	case !r.next(simpleFalse):
		r.Fail()
	}
	return false
}

// Null reports whether null comes next, and reads it then.
func (r *Reader) Null() bool { return r.next(simpleNull) }

// Array reads the head of an array of exactly n items.
func (r *Reader) Array(n int) {
	if r.expect(majorArray) != uint64(n) {
		r.Fail()
	}
}

// ArrayUpTo reads the head of an array of at most so many items, and returns how
// many there are.
func (r *Reader) ArrayUpTo(most int) int { return r.count(majorArray, most) }

// Texts reads an array of at most so many texts of at most so many bytes.
func (r *Reader) Texts(most, bytes int) []string {
	n := r.ArrayUpTo(most)
	var list []string
	for range n {
		list = append(list, r.Text(bytes))
	}
	return list
}

// Value reads what AppendValue wrote, whole numbers as int64 or, above, uint64.
func (r *Reader) Value() any { return r.value(maxDepth) }

func (r *Reader) value(depth int) any {
	if depth == 0 || len(r.rest) == 0 {
		r.Fail()
		return nil
	}
	switch first := r.rest[0]; {
	case r.Null():
		return nil
	case first == simpleTrue, first == simpleFalse:
		return r.Bool()
	case first == float64Head:
		return r.float()
	}
	switch r.rest[0] & 0xe0 {
	case majorUint:
		n := r.Uint()
		if n > math.MaxInt64 {
			return n
		}
		return int64(n)
	case majorNeg:
		return r.Int()
	case majorText:
		return r.Text(len(r.rest))
	case majorArray:
		list := []any{}
		for range r.ArrayUpTo(len(r.rest)) {
			list = append(list, r.value(depth-1))
		}
		return list
	case majorMap:
		return r.mapping(depth)
	}
	r.Fail()
	return nil
}

func (r *Reader) mapping(depth int) any {
	values := map[string]any{}
	last := ""
	for i := range r.count(majorMap, len(r.rest)/2) {
		key := r.Text(len(r.rest))
		if i > 0 && compareKeys(last, key) >= 0 {
			r.Fail()
			break
		}
		last = key
		values[key] = r.value(depth - 1)
	}
	return values
}

func (r *Reader) float() any {
	if len(r.rest) < 9 {
		r.Fail()
		return nil
	}
	v := math.Float64frombits(binary.BigEndian.Uint64(r.rest[1:9]))
	r.rest = r.rest[9:]
	return v
}

func (r *Reader) next(b byte) bool {
	if len(r.rest) == 0 || r.rest[0] != b {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

func (r *Reader) count(major byte, most int) int {
	n := r.expect(major)
	if n > uint64(max(most, 0)) {
		r.Fail()
		return 0
	}
	return int(n)
}

func (r *Reader) take(major byte, most int) []byte {
	n := r.expect(major)
	if n > uint64(len(r.rest)) || n > uint64(max(most, 0)) {
		r.Fail()
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *Reader) expect(major byte) uint64 {
	got, n := r.head()
	if got != major {
		r.Fail()
		return 0
	}
	return n
}

// head reads the head of an item, in the shortest form only.
func (r *Reader) head() (major byte, n uint64) {
	if len(r.rest) == 0 {
		r.Fail()
		return 0, 0
	}
	first := r.rest[0]
	major, info := first&0xe0, first&0x1f
	if info < 24 {
		r.rest = r.rest[1:]
		return major, uint64(info)
	}
	size := 1 << (info - 24)
	if info > 27 || len(r.rest) < 1+size {
		r.Fail()
		return 0, 0
	}
	for _, b := range r.rest[1 : 1+size] {
		n = n<<8 | uint64(b)
	}
	r.rest = r.rest[1+size:]
	if n < 24 || size > 1 && n>>(4*size) == 0 {
		r.Fail()
		return 0, 0
	}
	return major, n
}
