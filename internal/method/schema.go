package method

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/musterfleet/muster"
)

// A schema checks the input or the output of one method.
type schema struct {
	method   muster.Method
	side     string // "input" or "output"
	doc      any    // the schema as JSON, to look up what was expected
	compiled *jsonschema.Schema
}

// compile compiles a schema. Formats ("format": "uri") are checked, too, since
// whoever states one expects it to hold.
func compile(name muster.Method, side string, raw json.RawMessage) (*schema, error) {
	if len(raw) == 0 {
		raw = json.RawMessage("true")
	}
	doc, err := decode(raw)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "method %s: %s schema: %w", name, side, err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(refuse{}) // the default reads files
	url := "method:///" + string(name) + "/" + side
	if err := c.AddResource(url, doc); err != nil {
		return nil, muster.Errorf(muster.Invalid, "method %s: %s schema: %s", name, side, oneLine(err))
	}
	compiled, err := c.Compile(url)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "method %s: %s schema cannot be compiled: %s", name, side, oneLine(err)).
			WithHint("a schema is JSON Schema 2020-12, and refers ($ref) only to parts of itself")
	}
	return &schema{name, side, doc, compiled}, nil
}

// refuse is a loader that loads nothing: a schema from a stranger must not
// read files or open connections.
type refuse struct{}

func (refuse) Load(string) (any, error) {
	return nil, errors.New("references outside of the schema are not allowed")
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// validate checks a value. Empty counts as {}.
func (s *schema) validate(raw json.RawMessage) error {
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	value, err := decode(raw)
	if err != nil {
		return muster.Errorf(muster.Invalid, "method %s: %s: %w", s.method, s.side, err)
	}
	err = s.compiled.Validate(value)
	if err == nil {
		return nil
	}
	bad, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return muster.Errorf(muster.Invalid, "method %s: %s: %w", s.method, s.side, err)
	}
	return s.explain(value, bad)
}

// maxExponent bounds the exponent of a number. No float64 needs more, while
// exact arithmetic, which validation does, would need megabytes for 1e999999.
const maxExponent = 400

// decode reads one JSON value, with numbers as json.Number.
func decode(raw []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return nil, muster.Errorf(muster.Invalid, "not valid JSON: %w", err)
	}
	if d.More() || len(bytes.TrimSpace(raw[d.InputOffset():])) > 0 {
		return nil, muster.Errorf(muster.Invalid, "expected one JSON value, but more follows it")
	}
	return value, checkNumbers(value)
}

func checkNumbers(value any) error {
	switch v := value.(type) {
	case json.Number:
		if i := strings.IndexAny(string(v), "eE"); i >= 0 {
			if n, err := strconv.Atoi(string(v[i+1:])); err != nil || max(n, -n) > maxExponent {
				return muster.Errorf(muster.Invalid, "number %s has an exponent beyond %d", clip(string(v)), maxExponent)
			}
		}
	case []any:
		for _, e := range v {
			if err := checkNumbers(e); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, e := range v {
			if err := checkNumbers(e); err != nil {
				return err
			}
		}
	}
	return nil
}
