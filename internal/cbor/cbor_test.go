package cbor

import (
	"bytes"
	"math"
	"reflect"
	"testing"

	library "github.com/fxamacker/cbor/v2"
)

func TestValuesAsTheLibraryWritesThem(t *testing.T) {
	options := library.CoreDetEncOptions()
	options.ShortestFloat = library.ShortestFloatNone
	options.Sort = library.SortLengthFirst
	mode, err := options.EncMode()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{nil, true, false, int64(0), int64(23), int64(24), int64(255), int64(256), int64(65535), int64(65536), int64(1 << 32),
		int64(-1), int64(-24), int64(-25), int64(math.MinInt64), int64(math.MaxInt64), uint64(math.MaxUint64), 1.5, -1e300, "", "a", "ä€",
		[]any{}, []any{int64(1), "x", nil}, map[string]any{}, map[string]any{"b": int64(1), "aa": []any{true}, "a": map[string]any{"z": "y"}}} {
		want, err := mode.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		got := AppendValue(nil, v)
		if !bytes.Equal(got, want) {
			t.Errorf("%v is written as %x, want %x", v, got, want)
		}
		r := NewReader(got)
		if back := r.Value(); !reflect.DeepEqual(back, v) || !r.End() {
			t.Errorf("%x is read as %v, want %v", got, back, v)
		}
	}
}

func TestOtherEncodingsAreRefused(t *testing.T) {
	for name, data := range map[string][]byte{
		"nothing":                 {},
		"number not shortest":     {0x18, 0x17},
		"number not shortest, 16": {0x19, 0x00, 0xff},
		"number not shortest, 32": {0x1a, 0x00, 0x00, 0xff, 0xff},
		"number not shortest, 64": {0x1b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"indefinite array":        {0x9f, 0xff},
		"truncated text":          {0x62, 'a'},
		"not UTF-8":               {0x61, 0xff},
		"keys not sorted":         {0xa2, 0x61, 'b', 0, 0x61, 'a', 0},
		"key repeated":            {0xa2, 0x61, 'a', 0, 0x61, 'a', 0},
		"tag":                     {0xc0, 0},
		"huge array":              {0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"something after it":      {0, 0},
		"too deep":                bytes.Repeat([]byte{0x81}, 100),
	} {
		r := NewReader(data)
		r.Value()
		if r.End() {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestFields(t *testing.T) {
	b := AppendArray(nil, 7)
	b = AppendUint(b, 300)
	b = AppendInt(b, -5)
	b = AppendBytes(b, []byte{1, 2, 3})
	b = AppendText(b, "x\xff")
	b = AppendTexts(b, []string{"p", "q"})
	b = AppendNull(b)
	b = AppendBool(b, true)
	r := NewReader(b)
	r.Array(7)
	var fixed [3]byte
	if n := r.UintUpTo(300); n != 300 {
		t.Error(n)
	}
	if n := r.Int(); n != -5 {
		t.Error(n)
	}
	r.Fixed(fixed[:])
	if s := r.Text(10); s != "x\ufffd" || fixed != [3]byte{1, 2, 3} {
		t.Error(s, fixed)
	}
	if list := r.Texts(2, 1); !reflect.DeepEqual(list, []string{"p", "q"}) {
		t.Error(list)
	}
	if !r.Null() || !r.Bool() || !r.End() {
		t.Error("the end is not as written")
	}
	for name, f := range map[string]func(*Reader){
		"length":    func(r *Reader) { r.Array(6) },
		"limit":     func(r *Reader) { r.Array(7); r.UintUpTo(299) },
		"type":      func(r *Reader) { r.Bytes(100) },
		"too short": func(r *Reader) { r.Array(7); r.Uint(); r.Int(); r.Bytes(2) },
	} {
		r := NewReader(b)
		if f(r); r.OK() {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzValue checks that what is accepted has one encoding, and that the library
// reads it too.
func FuzzValue(f *testing.F) {
	f.Add([]byte{0xa1, 0x61, 'a', 0x82, 0x01, 0xf6})
	f.Add([]byte{0x01, 0xff})
	f.Add(AppendValue(nil, map[string]any{"x": 1.5, "y": []any{int64(-7)}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(data)
		v := r.Value()
		if !r.End() {
			return
		}
		if again := AppendValue(nil, v); !bytes.Equal(again, data) {
			t.Errorf("%x is read as %v, which is written as %x", data, v, again)
		}
		if err := library.Wellformed(data); err != nil {
			t.Errorf("%x: %v", data, err)
		}
	})
}
