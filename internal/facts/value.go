package facts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

// Limits of one file's facts. Text of MaxFile bytes can hold far more
// structure than ever fits in MaxSize, and YAML can repeat a part by
// reference.
const (
	maxDepth  = 32
	maxValues = MaxSize / 2
)

// asFacts turns a decoded document into facts.
func asFacts(document any) (map[string]any, error) {
	n := normalizer{left: maxValues}
	value, err := n.value(document, 0)
	if err != nil {
		return nil, err
	}
	facts, ok := value.(map[string]any)
	if !ok {
		return nil, muster.Errorf(muster.Invalid, "expected a map of facts, found %s", describe(value))
	}
	return facts, nil
}

func describe(value any) string {
	switch value.(type) {
	case nil:
		return "nothing"
	case []any:
		return "a list"
	}
	return fmt.Sprintf("%.40q", fmt.Sprint(value))
}

// A normalizer turns what decoders make into the few types that facts have.
type normalizer struct {
	left int // values that may follow
}

func (n *normalizer) value(v any, depth int) (any, error) {
	if n.left--; n.left < 0 {
		return nil, muster.Errorf(muster.Full, "it holds more than %d values", maxValues)
	}
	if depth > maxDepth {
		return nil, muster.Errorf(muster.Full, "it is nested more than %d deep", maxDepth)
	}
	switch v := v.(type) {
	case nil, bool, string, int64:
		return v, nil
	case int:
		return int64(v), nil
	case uint64: // only above the range of int64
		return float64(v), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, muster.Errorf(muster.Invalid, "number %v cannot be a fact", v)
		}
		return v, nil
	case json.Number:
		return fromNumber(v)
	case time.Time: // YAML reads unquoted dates as such
		if v.Equal(v.Truncate(24*time.Hour)) && v.Location() == time.UTC {
			return v.Format(time.DateOnly), nil
		}
		return v.Format(time.RFC3339Nano), nil
	case []any:
		return n.list(v, depth)
	case map[string]any:
		m := make(map[string]any, len(v))
		for key, inner := range v {
			if err := n.entry(m, key, inner, depth); err != nil {
				return nil, err
			}
		}
		return m, nil
	case map[any]any: // YAML with a key that is not a string
		m := make(map[string]any, len(v))
		for key, inner := range v {
			if err := n.entry(m, fmt.Sprint(key), inner, depth); err != nil {
				return nil, err
			}
		}
		return m, nil
	}
	return nil, muster.Errorf(muster.Invalid, "a %T cannot be a fact", v)
}

func (n *normalizer) list(v []any, depth int) (any, error) {
	list := make([]any, len(v))
	for i, inner := range v {
		value, err := n.value(inner, depth+1)
		if err != nil {
			return nil, err
		}
		list[i] = value
	}
	return list, nil
}

func (n *normalizer) entry(m map[string]any, key string, v any, depth int) error {
	value, err := n.value(v, depth+1)
	if err != nil {
		return err
	}
	if _, twice := m[key]; twice { // 1 and 1.0
		return muster.Errorf(muster.Invalid, "key %.40q is there twice", key)
	}
	m[key] = value
	return nil
}

func fromNumber(number json.Number) (any, error) {
	if i, err := number.Int64(); err == nil {
		return i, nil
	}
	f, err := number.Float64()
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "number %.40s is out of range", number)
	}
	return f, nil
}

// parseKeyValue reads lines of key=value. Spaces around both are dropped, the
// value stays a string and may be empty or hold further equals signs. Empty
// lines and those that begin with # are skipped. The last of several lines
// with one key counts.
func parseKeyValue(data []byte) (map[string]any, error) {
	facts := map[string]any{}
	number := 0
	for line := range bytes.Lines(data) {
		number++
		text := strings.TrimSpace(string(line))
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if !utf8.ValidString(text) {
			return nil, muster.Errorf(muster.Invalid, "line %d: not valid UTF-8", number)
		}
		key, value, found := strings.Cut(text, "=")
		key = strings.TrimSpace(key)
		// A key with a space is a sentence that happens to hold an equals
		// sign: a message, say, that an executable printed to the wrong place.
		if !found || key == "" || strings.ContainsFunc(key, unicode.IsSpace) {
			return nil, muster.Errorf(muster.Invalid, "line %d: expected key=value, found %.40q", number, text)
		}
		facts[key] = strings.TrimSpace(value)
	}
	return facts, nil
}
