package method

import (
	"context"
	"encoding/json"
)

// fake is a method that is only described.
type fake Spec

func (f fake) Spec() Spec { return Spec(f) }

func (f fake) Invoke(context.Context, Invocation) (Outcome, error) { return Outcome{}, nil }

// service is a spec with every type of property.
var service = Spec{
	Name:        "service.restart",
	Description: "Restart services.",
	Input: json.RawMessage(`{
		"type": "object",
		"properties": {
			"name":    {"type": "string", "minLength": 2},
			"timeout": {"type": "integer", "minimum": 1, "maximum": 60},
			"ratio":   {"type": "number", "exclusiveMinimum": 0.5},
			"force":   {"type": "boolean"},
			"mode":    {"enum": ["soft", "hard"]},
			"units":   {"type": "array", "items": {"type": "string"}, "maxItems": 3, "uniqueItems": true},
			"ports":   {"type": "array", "items": {"type": "integer"}},
			"labels":  {"type": "object", "additionalProperties": {"type": "string"}, "propertyNames": {"pattern": "^[a-z]+$"}},
			"limit":   {"type": ["integer", "null"]},
			"any":     true,
			"site":    {"type": "string", "format": "uri"}
		},
		"required": ["name"],
		"additionalProperties": false,
		"x-positional": ["name", "units"]
	}`),
	Output: json.RawMessage(`{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}`),
}
