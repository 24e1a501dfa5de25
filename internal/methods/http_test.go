package methods

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

// testServer answers by path; "elsewhere" leads to other.
func testServer(t *testing.T, other string) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/show", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("X-Two", "a")
		w.Header().Add("X-Two", "b")
		fmt.Fprintf(w, "host=%s token=%q agent=%s", r.Host, r.Header.Get("X-Token"), r.UserAgent())
	})
	mux.HandleFunc("/hundred", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 100)) })
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, "try later")
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "begun")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "abc")
	})
	mux.Handle("/same", http.RedirectHandler("/show", http.StatusFound))
	mux.Handle("/elsewhere", http.RedirectHandler(other+"/show", http.StatusFound))
	mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusFound))
	mux.Handle("/file", http.RedirectHandler("file:///etc/passwd", http.StatusFound))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func TestHTTPGet(t *testing.T) {
	other := testServer(t, "")
	server := testServer(t, other.URL)
	host := strings.TrimPrefix(server.URL, "http://")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // it is not used
	tests := []struct {
		name, input, body string
		truncated         bool
		kind              muster.ErrorKind
		want              string
	}{
		{"headers", `{"url": "URL/show", "headers": {"x-token": "t", "user-agent": "me"}}`, "host=" + host + ` token="t" agent=me`, false, "", ""},
		{"host", `{"url": "URL/show", "headers": {"host": "a.example"}}`, `host=a.example token="" agent=muster`, false, "", ""},
		{"redirect", `{"url": "URL/same", "headers": {"X-Token": "t"}}`, "host=" + host + ` token="t" agent=muster`, false, "", ""},
		{"redirect keeps secrets", `{"url": "URL/elsewhere", "headers": {"X-Token": "t"}}`, "host=" + strings.TrimPrefix(other.URL, "http://") + ` token="" agent=muster`, false, "", ""},
		{"truncated", `{"url": "URL/hundred", "max_bytes": 99}`, strings.Repeat("x", 99), true, "", ""},
		{"just fits", `{"url": "URL/hundred", "max_bytes": 100}`, strings.Repeat("x", 100), false, "", ""},
		{"no body wanted", `{"url": "URL/hundred", "max_bytes": 0}`, "", true, "", ""},
		{"status", `{"url": "URL/broken"}`, "try later", false, muster.Failed, "status 503 Service Unavailable"},
		{"not found", `{"url": "URL/none"}`, "404 page not found\n", false, muster.Failed, "status 404"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c call
			c.invoke(t.Context(), builtinNamed(t, "http.get"), strings.ReplaceAll(tt.input, "URL", server.URL))
			c.want(t, tt.kind, tt.want)
			if got := c.stdout.String(); got != tt.body {
				t.Errorf("got body %q, want %q", got, tt.body)
			}
			out := decodeOutput[httpOutput](t, &c)
			if out.Truncated != tt.truncated || out.Bytes != int64(len(tt.body)) || out.Status == 0 {
				t.Errorf("got output %+v", out)
			}
			if strings.Contains(tt.input, "/show") && len(out.Headers["X-Two"]) != 2 {
				t.Errorf("got headers %v", out.Headers)
			}
		})
	}
}

func TestHTTPGetFails(t *testing.T) {
	server := testServer(t, "")
	tests := []struct {
		name, input string
		kind        muster.ErrorKind
		want        string
	}{
		{"scheme", `{"url": "file:///etc/passwd"}`, muster.Invalid, "http:// or https://"},
		{"no host", `{"url": "http://"}`, muster.Invalid, "names a host"},
		{"not an address", `{"url": "http://a b"}`, muster.Invalid, "expected an address"},
		{"bad header", `{"url": "URL/show", "headers": {"a": "x\r\nb: y"}}`, muster.Invalid, "header a: expected one line"},
		{"loop", `{"url": "URL/loop"}`, muster.Failed, "more than 10 redirects"},
		{"to a file", `{"url": "URL/file"}`, muster.Denied, `redirected to the scheme "file"`},
		{"nobody there", `{"url": "http://127.0.0.1:1"}`, muster.Unavailable, "refused"},
		{"slow", `{"url": "URL/slow", "timeout_ms": 50}`, muster.TimedOut, "no complete answer in time"},
		{"short", `{"url": "URL/short"}`, muster.Unavailable, "unexpected EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c call
			c.invoke(t.Context(), builtinNamed(t, "http.get"), strings.ReplaceAll(tt.input, "URL", server.URL))
			c.want(t, tt.kind, tt.want)
		})
	}
}

func TestHTTPGetCancelled(t *testing.T) {
	server := testServer(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	var c call
	wait := c.start(ctx, builtinNamed(t, "http.get"), `{"url": "`+server.URL+`/slow"}`)
	c.stdout.await(t, "begun")
	cancel()
	wait(t)
	c.want(t, muster.Interrupted, "stopped: context canceled")
}

// Messages are logged, and an address may hold a password.
func TestHTTPGetHidesPassword(t *testing.T) {
	server := testServer(t, "")
	for _, path := range []string{"/none", "/file", "/loop", "/short"} {
		var c call
		c.invoke(t.Context(), builtinNamed(t, "http.get"), `{"url": "http://me:hunter2@`+strings.TrimPrefix(server.URL, "http://")+path+`"}`)
		if c.err == nil || strings.Contains(c.err.Error(), "hunter2") {
			t.Errorf("%s: got %v", path, c.err)
		}
	}
}

func TestHTTPRedirectToPlain(t *testing.T) {
	request := func(url string) *http.Request {
		r, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	err := httpInput{}.redirect(request("http://a/"), []*http.Request{request("https://a/")})
	if muster.KindOf(err) != muster.Denied {
		t.Errorf("got %v, want it denied", err)
	}
	if defaultHTTPTimeout != 30*time.Second {
		t.Error("the schema states another default of timeout_ms")
	}
}
