package methods

import (
	"context"
	"encoding/json"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

// Hello is what a node says of itself.
type Hello struct {
	Node    muster.NodeName `json:"node"`
	Version string          `json:"version"` // of muster
	Time    time.Time       `json:"time"`    // by the clock of the node
}

func nodeHello(hello func() Hello) method.Method {
	return define(method.Spec{
		Name:        "node.hello",
		Description: "Say which node this is, which version of muster it runs, and what time its clock shows.",
		Idempotent:  true,
		Input:       json.RawMessage(`{"type": "object", "additionalProperties": false}`),
		Output: json.RawMessage(`{
			"type": "object",
			"properties": {
				"node":    {"type": "string", "description": "name of the node"},
				"version": {"type": "string", "description": "version of muster"},
				"time":    {"type": "string", "format": "date-time", "description": "by the clock of the node"}
			},
			"required": ["node", "version", "time"],
			"additionalProperties": false
		}`),
		Examples: examples("see whether a node works", `{}`),
	}, func(context.Context, method.Invocation, struct{}) (method.Outcome, error) {
		return result(hello())
	})
}

func nodeFacts(facts func(context.Context) (map[string]any, error)) method.Method {
	return define(method.Spec{
		Name:        "node.facts",
		Description: "Return the facts of the node, gathered anew.",
		Idempotent:  true,
		TimeoutMS:   time.Minute.Milliseconds(),
		Input:       json.RawMessage(`{"type": "object", "additionalProperties": false}`),
		Output: json.RawMessage(`{
			"type": "object",
			"properties": {"facts": {"type": "object", "description": "facts by name; a value may be any JSON"}},
			"required": ["facts"],
			"additionalProperties": false
		}`),
		Examples: examples("show all facts", `{}`),
	}, func(ctx context.Context, _ method.Invocation, _ struct{}) (method.Outcome, error) {
		found, err := facts(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return method.Outcome{}, interrupted(ctx)
			}
			return method.Outcome{}, muster.AsError(muster.Failed, err)
		}
		if found == nil {
			found = map[string]any{}
		}
		return result(map[string]any{"facts": found})
	})
}

func echo() method.Method {
	const schema = `{
		"type": "object",
		"properties": {"message": {"description": "any JSON"}},
		"required": ["message"],
		"additionalProperties": false,
		"x-positional": ["message"]
	}`
	type message struct {
		Message json.RawMessage `json:"message"`
	}
	return define(method.Spec{
		Name:        "echo",
		Description: "Return the input, to test the way to a node and back.",
		Idempotent:  true,
		Input:       json.RawMessage(schema),
		Output:      json.RawMessage(schema),
		Examples:    examples("text", `{"message": "hello"}`, "any JSON", `{"message": {"n": [1, 2, 3]}}`),
	}, func(_ context.Context, _ method.Invocation, m message) (method.Outcome, error) {
		return result(m)
	})
}
