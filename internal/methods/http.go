package methods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

const (
	defaultHTTPTimeout = 30 * time.Second
	defaultHTTPBytes   = 10 << 20
	maxRedirects       = 10
)

type httpInput struct {
	URL       string            `json:"url"`
	Headers   map[string]string `json:"headers"`
	TimeoutMS int64             `json:"timeout_ms"`
	MaxBytes  *int64            `json:"max_bytes"` // 0 is none of the body
}

type httpOutput struct {
	Status    int         `json:"status"`
	Headers   http.Header `json:"headers"`
	Bytes     int64       `json:"bytes"`
	Truncated bool        `json:"truncated"`
}

func httpGet() method.Method {
	return define(method.Spec{
		Name: "http.get",
		Description: "Fetch an address over http or https and write the body to the output; " +
			"proxies are not used, whatever the agent's environment says.",
		Idempotent: true,
		Input: json.RawMessage(`{
			"type": "object",
			"properties": {
				"url":        {"type": "string", "pattern": "^https?://", "description": "address; up to 10 redirects are followed, but none from https to http"},
				"headers":    {"type": "object", "additionalProperties": {"type": "string", "writeOnly": true}, "propertyNames": {"pattern": "^[A-Za-z0-9!#$%&'*+.^_|~-]+$"}, "description": "of the request; not sent on to another host"},
				"timeout_ms": {"type": "integer", "minimum": 1, "maximum": 86400000, "default": 30000, "description": "for everything, the body too"},
				"max_bytes":  {"type": "integer", "minimum": 0, "maximum": 268435456, "default": 10485760, "description": "of the body; the rest is not read"}
			},
			"required": ["url"],
			"additionalProperties": false,
			"x-positional": ["url"]
		}`),
		Output: json.RawMessage(`{
			"type": "object",
			"properties": {
				"status":    {"type": "integer"},
				"headers":   {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}, "description": "of the response, by canonical name"},
				"bytes":     {"type": "integer", "minimum": 0, "description": "written to the output"},
				"truncated": {"type": "boolean", "description": "whether the body had more than max_bytes"}
			},
			"required": ["status", "headers", "bytes", "truncated"],
			"additionalProperties": false
		}`),
		Examples: examples(
			"is a service well", `{"url": "http://127.0.0.1:8080/health", "timeout_ms": 2000}`,
			"with a header", `{"url": "https://example.org/data.json", "headers": {"Accept": "application/json"}}`,
		),
	}, func(ctx context.Context, in method.Invocation, input httpInput) (method.Outcome, error) {
		return input.get(ctx, in)
	})
}

func (i httpInput) get(ctx context.Context, in method.Invocation) (method.Outcome, error) {
	u, err := url.Parse(i.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return method.Outcome{}, muster.Errorf(muster.Invalid, "url: expected an address that begins with http:// or https:// and names a host")
	}
	timeout := defaultHTTPTimeout
	if i.TimeoutMS > 0 {
		timeout = time.Duration(i.TimeoutMS) * time.Millisecond
	}
	run, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := i.request(run, u)
	if err != nil {
		return method.Outcome{}, err
	}
	client, done := i.client()
	defer done()
	response, err := client.Do(request)
	if err != nil {
		return method.Outcome{}, httpError(ctx, run, u, err)
	}
	defer response.Body.Close()
	out, err := i.receive(response, in.Stdout)
	if err != nil {
		return method.Outcome{}, httpError(ctx, run, u, err)
	}
	outcome, err := result(out)
	if err == nil && (out.Status < 200 || out.Status > 299) {
		err = muster.Errorf(muster.Failed, "get %s: status %s", u.Redacted(), response.Status)
	}
	return outcome, err
}

func (i httpInput) request(ctx context.Context, u *url.URL) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "url: %w", err)
	}
	request.Header.Set("User-Agent", "muster")
	for name, value := range i.Headers {
		if strings.ContainsAny(value, "\r\n\x00") { // net/http would only say so later, among errors of the network
			return nil, muster.Errorf(muster.Invalid, "header %s: expected one line of text", name)
		}
		if http.CanonicalHeaderKey(name) == "Host" {
			request.Host = value
			continue
		}
		request.Header.Set(name, value)
	}
	return request, nil
}

// client returns a client for one request, and a function that closes what it
// leaves open.
func (i httpInput) client() (*http.Client, func()) {
	transport := &http.Transport{
		Proxy:              nil,  // not from the environment
		DisableCompression: true, // the bytes as they are
		DisableKeepAlives:  true, // no connection outlives the run
		ForceAttemptHTTP2:  true,
	}
	return &http.Client{Transport: transport, CheckRedirect: i.redirect}, transport.CloseIdleConnections
}

// redirect keeps headers, in which there may be a token, from other hosts. Of
// its own net/http withholds only the well-known ones.
func (i httpInput) redirect(next *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) > maxRedirects:
		return muster.Errorf(muster.Failed, "more than %d redirects", maxRedirects)
	case next.URL.Scheme != "http" && next.URL.Scheme != "https":
		return muster.Errorf(muster.Denied, "redirected to the scheme %q", next.URL.Scheme)
	case via[len(via)-1].URL.Scheme == "https" && next.URL.Scheme == "http":
		return muster.Errorf(muster.Denied, "redirected from https to http")
	}
	if next.URL.Host != first.Host {
		for name := range i.Headers {
			next.Header.Del(name)
		}
	}
	return nil
}

// receive copies the body as far as it is wanted.
func (i httpInput) receive(response *http.Response, to io.Writer) (httpOutput, error) {
	limit := int64(defaultHTTPBytes)
	if i.MaxBytes != nil {
		limit = *i.MaxBytes
	}
	out := httpOutput{Status: response.StatusCode, Headers: response.Header}
	var err error
	out.Bytes, err = io.Copy(to, io.LimitReader(response.Body, limit))
	if err != nil || out.Bytes < limit {
		return out, err
	}
	n, err := io.ReadFull(response.Body, make([]byte, 1))
	out.Truncated = n > 0
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return out, err
}

// httpError gives an error its kind. ctx is that of the run, limited the one
// with the request's own time limit.
func httpError(ctx, limited context.Context, u *url.URL, err error) error {
	if ctx.Err() != nil {
		return interrupted(ctx)
	}
	what := "get " + u.Redacted() // an address may hold a password
	if limited.Err() != nil {
		return muster.Errorf(muster.TimedOut, "%s: no complete answer in time", what).WithHint("raise timeout_ms")
	}
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err // without the address, which is in what
	}
	if own, ok := errors.AsType[*muster.Error](err); ok {
		return muster.Errorf(own.Kind, "%s: %w", what, own)
	}
	return muster.AsError(muster.Unavailable, fmt.Errorf("%s: %w", what, err))
}
