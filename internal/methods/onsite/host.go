package onsite

import (
	"context"
	"slices"
	"strings"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
)

// Methods are the names of all methods.
var Methods = []string{"status", "facts", "logs", "service", "broker", "script", "get", "put"}

// A Host executes methods on this machine.
type Host struct {
	Node   string
	Allow  []string // what is permitted; nil: all
	Status func() Status
	Facts  func() map[string]any
	// BrokerFile holds the addresses that muster's agent dials instead of those
	// that it joined with. Empty if the machine has no such agent.
	BrokerFile string
	// Repointed, if there is one, is called when that file was written.
	Repointed func()
	// Hint, if there is one, takes what newcomers are to be told of the broker.
	Hint func([]byte) error
}

// ParseAllow reads a list of methods, with commas between them. An empty one
// permits nothing.
func ParseAllow(list string) ([]string, error) {
	allow := []string{}
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		if !slices.Contains(Methods, name) {
			return nil, muster.Errorf(muster.Invalid, "there is no method %q", name).WithHint("choose of: %s", strings.Join(Methods, ", "))
		}
		allow = append(allow, name)
	}
	return allow, nil
}

// Execute runs a method and returns its code and an encoded Answer. The context
// ends it.
func (h *Host) Execute(ctx context.Context, method string, args []byte) (order.Code, []byte) {
	if !slices.Contains(Methods, method) || h.Allow != nil && !slices.Contains(h.Allow, method) {
		a := Answer{Node: h.Node, Message: "the method " + cut(method, maxName) + " is not permitted here", Hint: "permitted are: " + strings.Join(h.permitted(), ", ")}
		return order.Denied, a.Encode()
	}
	result, err := h.run(ctx, method, args)
	a := Answer{Node: h.Node, Result: result}
	if err != nil {
		e := muster.AsError(muster.Failed, err)
		a.Message, a.Hint = e.Message, e.Hint
		return order.Failed, a.Encode()
	}
	return order.OK, a.Encode()
}

func (h *Host) permitted() []string {
	if h.Allow == nil {
		return Methods
	}
	return h.Allow
}

func (h *Host) run(ctx context.Context, method string, args []byte) ([]byte, error) {
	switch method {
	case "status":
		return h.status(), nil
	case "facts":
		return h.facts()
	case "logs":
		return withArgs(args, DecodeLogs, func(l Logs) (Output, error) { return logs(ctx, l) })
	case "service":
		return withArgs(args, DecodeService, func(s Service) (Output, error) { return service(ctx, s) })
	case "broker":
		return withArgs(args, DecodeBroker, h.broker)
	case "script":
		return withArgs(args, DecodeScript, func(s Script) (Output, error) { return script(ctx, s) })
	case "get":
		return withArgs(args, DecodeGet, get)
	}
	return withArgs(args, DecodePut, put)
}

// withArgs decodes, runs and encodes. What a failed run had to say is kept.
func withArgs[A any, R interface{ Encode() []byte }](data []byte, decode func([]byte) (A, error), f func(A) (R, error)) ([]byte, error) {
	args, err := decode(data)
	if err != nil {
		return nil, err
	}
	result, err := f(args)
	return result.Encode(), err
}

func (h *Host) status() []byte {
	s := Status{}
	if h.Status != nil {
		s = h.Status()
	}
	s.Node = h.Node
	if urls, err := ReadBroker(h.BrokerFile); err != nil {
		s.Problems = append(s.Problems, err.Error())
	} else if len(urls) > 0 {
		s.Broker = urls
	}
	return s.Encode()
}

func (h *Host) facts() ([]byte, error) {
	if h.Facts == nil {
		return EncodeFacts(nil), nil
	}
	data := EncodeFacts(h.Facts())
	if len(data) > maxResult {
		return nil, muster.Errorf(muster.Full, "the facts have %d bytes; %d are possible", len(data), maxResult)
	}
	return data, nil
}

func (h *Host) broker(b Broker) (Broker, error) {
	if len(b.Hint) > 0 && h.Hint != nil {
		if err := h.Hint(b.Hint); err != nil {
			return Broker{}, err
		}
	}
	if len(b.URLs) > 0 {
		if err := WriteBroker(h.BrokerFile, b.URLs); err != nil {
			return Broker{}, err
		}
		if h.Repointed != nil {
			h.Repointed()
		}
	}
	urls, err := ReadBroker(h.BrokerFile)
	if len(urls) == 0 && err == nil && h.Status != nil {
		urls = h.Status().Broker
	}
	return Broker{URLs: urls}, err
}
