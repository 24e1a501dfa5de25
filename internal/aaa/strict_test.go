package aaa

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

func TestDecodeStrict(t *testing.T) {
	type inner struct {
		B string `json:"b"`
	}
	type doc struct {
		A     string          `json:"a"`
		List  []inner         `json:"list"`
		Free  json.RawMessage `json:"free"`
		Bytes []byte          `json:"bytes"`
	}
	s := shapeOf[doc]()
	for _, c := range []struct{ name, in, want string }{
		{"all", ` { "a" : "x" , "list" : [ { "b" : "y" } , {} ] , "free" : { "Any" : [ 1 , { } ] } , "bytes" : "AA==" } `, ""},
		{"escaped key", `{"\u0061":"x"}`, ""},
		{"escaped quotes", `{"a":"\\\"}{"}`, ""},
		{"same key in different objects", `{"free":[{"x":1},{"x":2}]}`, ""},
		{"case", `{"A":"x"}`, `key "A" at byte 2 is unknown; expected one of a, bytes, free, list`},
		{"unknown", `{"a":"x","z":1}`, `key "z"`},
		{"unknown in a list", `{"list":[{"B":1}]}`, `key "B"`},
		{"twice", `{"a":"x","a":"y"}`, `key "a" at byte 10 is there twice`},
		{"twice by escape", `{"a":"x","\u0061":"y"}`, `there twice`},
		{"twice deep", `{"free":{"x":[{"k":1,"k":1}]}}`, `key "k"`},
		{"trailing", `{"a":"x"} {}`, "JSON"},
		{"empty", ``, "JSON"},
		{"no UTF-8", "{\"a\":\"\xff\"}", "UTF-8"},
		{"type", `{"a":1}`, "cannot unmarshal"},
		{"array for object", `[]`, "cannot unmarshal"},
		{"deep", `{"free":` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `}`, ""},
		{"too deep", `{"free":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, "nested deeper than 64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d doc
			err := decodeStrict([]byte(c.in), s, &d)
			checkError(t, err, muster.Invalid, c.want)
		})
	}
}

// checkError wants no error when the text is empty, else one of the kind that
// contains the text.
func checkError(t *testing.T, err error, kind muster.ErrorKind, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case text != "" && err == nil:
		t.Errorf("no error; want one with %q", text)
	case text != "" && (!strings.Contains(err.Error(), text) || muster.KindOf(err) != kind):
		t.Errorf("error = %q of kind %q; want %q of kind %q", err, muster.KindOf(err), text, kind)
	}
}

func FuzzDecodeStrict(f *testing.F) {
	f.Add([]byte(`{"caller":"x","signature":"","envelope":""}`))
	f.Add([]byte(`{"a":[1,-2e3,true,null,"\u0000\"\\",{"b":{}}],"":{"":""}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		err := checkJSON(data, nil)
		if err == nil && !json.Valid(data) {
			t.Fatalf("accepted %q", data)
		}
		if err != nil && json.Valid(data) && !strings.Contains(err.Error(), "twice") &&
			!strings.Contains(err.Error(), "nested") && !strings.Contains(err.Error(), "UTF-8") {
			t.Fatalf("refused %q: %v", data, err)
		}
		if err != nil {
			return
		}
		// Without repeated keys a map has as many as the text. The document is
		// decoded and written again: nothing was lost that would show twice.
		value, ok := decodeAny(data)
		if !ok && len(data) > 0 {
			t.Fatalf("decodeAny refused %q", data)
		}
		again, err := marshalPlain(value)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkJSON(again, nil); err != nil {
			t.Fatalf("%q became %q: %v", data, again, err)
		}
	})
}
