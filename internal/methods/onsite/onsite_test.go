package onsite

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/order"
)

func execute[T any](t *testing.T, h *Host, method string, args []byte, decode func([]byte) (T, error)) (T, order.Code, Answer) {
	t.Helper()
	code, data := h.Execute(t.Context(), method, args)
	if len(data) > order.MaxResult {
		t.Fatalf("the answer has %d bytes", len(data))
	}
	a, err := DecodeAnswer(data)
	if err != nil {
		t.Fatal(err)
	}
	var result T
	if len(a.Result) > 0 {
		if result, err = decode(a.Result); err != nil {
			t.Fatal(err)
		}
	}
	return result, code, a
}

func TestTypesSurviveTheWire(t *testing.T) {
	status := Status{Node: "a", Program: "scout 1", State: "order", Order: "ff", Until: time.UnixMilli(1700000000123), Uptime: time.Hour,
		Broker: []string{"tls://b:1"}, Problems: []string{"p"}}
	if got, err := DecodeStatus(status.Encode()); err != nil || !reflect.DeepEqual(got, status) {
		t.Errorf("%+v, %v", got, err)
	}
	output := Output{-1, []byte("o"), []byte("e"), true, true, time.Second}
	if got, err := DecodeOutput(output.Encode()); err != nil || !reflect.DeepEqual(got, output) {
		t.Errorf("%+v, %v", got, err)
	}
	script := Script{Argv: []string{"a", "b"}, Stdin: []byte{}, Timeout: time.Minute}
	if got, err := DecodeScript(script.Encode()); err != nil || !reflect.DeepEqual(got, script) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := DecodeLogs(Logs{"u", 5}.Encode()); err != nil || got != (Logs{"u", 5}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := DecodeGet(Get{"/x", 5, 7}.Encode()); err != nil || got != (Get{"/x", 5, 7}) {
		t.Errorf("%+v, %v", got, err)
	}
	later := append([]byte{0x83, 0x01}, Logs{"u", 5}.Encode()[2:]...)
	if _, err := DecodeLogs(later); err == nil {
		t.Error("another version is accepted")
	}
}

func TestWhatIsNotAllowedIsDenied(t *testing.T) {
	allow, err := ParseAllow("status, facts")
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{Node: "n", Allow: allow}
	if _, code, a := execute(t, h, "script", Script{Script: "true"}.Encode(), DecodeOutput); code != order.Denied || !strings.Contains(a.Hint, "status, facts") {
		t.Errorf("%v %+v", code, a)
	}
	if _, code, _ := execute(t, &Host{Node: "n"}, "reboot", nil, DecodeOutput); code != order.Denied {
		t.Errorf("an unknown method: %v", code)
	}
	if _, code, _ := execute(t, h, "status", nil, DecodeStatus); code != order.OK {
		t.Errorf("status: %v", code)
	}
	if _, err := ParseAllow("status,reboot"); err == nil {
		t.Error("a method that is none may be allowed")
	}
	if none, err := ParseAllow(""); err != nil || none == nil {
		t.Error("an empty list allows everything")
	}
}

func TestFacts(t *testing.T) {
	h := &Host{Node: "n", Facts: GatherFacts}
	facts, code, _ := execute(t, h, "facts", nil, DecodeFacts)
	if code != order.OK || facts["go"].(map[string]any)["os"] != runtime.GOOS {
		t.Errorf("%v %v", code, facts)
	}
	h.Facts = func() map[string]any { return map[string]any{"x": strings.Repeat("x", maxResult)} }
	if _, code, a := execute(t, h, "facts", nil, DecodeFacts); code != order.Failed || a.Message == "" {
		t.Errorf("facts that are too long: %v %+v", code, a)
	}
}

func TestScript(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no /bin/sh")
	}
	h := &Host{Node: "n"}
	out, code, _ := execute(t, h, "script", Script{Script: "cat; echo bad >&2; exit 3", Stdin: []byte("in")}.Encode(), DecodeOutput)
	if code != order.Failed || out.ExitCode != 3 || string(out.Stdout) != "in" || string(out.Stderr) != "bad\n" {
		t.Errorf("%v %+v", code, out)
	}
	out, code, _ = execute(t, h, "script", Script{Argv: []string{"echo", "$HOME"}}.Encode(), DecodeOutput)
	if code != order.OK || string(out.Stdout) != "$HOME\n" {
		t.Errorf("%v %+v", code, out)
	}
	out, code, a := execute(t, h, "script", Script{Script: "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done"}.Encode(), DecodeOutput)
	if code != order.OK || len(out.Stdout) != MaxStream || !out.Truncated || !bytes.HasSuffix(out.Stdout, []byte("line 8999\n")) {
		t.Errorf("%v, %d bytes, truncated %v, %s", code, len(out.Stdout), out.Truncated, a.Message)
	}
	if _, code, _ := execute(t, h, "script", Script{}.Encode(), DecodeOutput); code != order.Failed {
		t.Error("nothing to run, and nobody minds")
	}
}

func TestAScriptEndsWithItsChildren(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("process groups and /proc")
	}
	file := filepath.Join(t.TempDir(), "pid")
	h := &Host{Node: "n"}
	for limit := 100 * time.Millisecond; ; limit *= 2 {
		out, code, _ := execute(t, h, "script", Script{Script: "sleep 1000 & echo $! >" + file + "; wait", Timeout: limit}.Encode(), DecodeOutput)
		if code != order.Failed || !out.TimedOut {
			t.Fatalf("%v %+v", code, out)
		}
		if info, err := os.Stat(file); err == nil && info.Size() > 0 {
			break // else it was ended before it had a child
		}
	}
	ended(t, file)
	out, code, _ := execute(t, h, "script", Script{Script: "sleep 1000 & echo $! >" + file + "; exit 0"}.Encode(), DecodeOutput)
	if code != order.OK || out.ExitCode != 0 {
		t.Errorf("%v %+v", code, out)
	}
	ended(t, file)
}

// ended waits until the process whose id is in the file is no more, or a zombie.
func ended(t *testing.T, file string) {
	t.Helper()
	pid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %s still runs", pid)
}

func TestFiles(t *testing.T) {
	h := &Host{Node: "n"}
	path := filepath.Join(t.TempDir(), "f")
	content := bytes.Repeat([]byte("0123456789abcdef"), 4000)
	puts, err := Puts(path, 0o640, content)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range puts {
		if _, err := os.Stat(path); err == nil {
			t.Fatal("the file is there before it is whole")
		}
		w, code, a := execute(t, h, "put", p.Encode(), DecodeWritten)
		if code != order.OK || w.Done != (i == len(puts)-1) {
			t.Fatalf("%v %+v %+v", code, w, a)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 && runtime.GOOS != "windows" {
		t.Fatalf("%v %v", info, err)
	}
	var got []byte
	for int64(len(got)) < info.Size() {
		c, code, a := execute(t, h, "get", Get{Path: path, Offset: int64(len(got))}.Encode(), DecodeChunk)
		if code != order.OK || len(c.Data) == 0 {
			t.Fatalf("%v %+v", code, a)
		}
		got = append(got, c.Data...)
	}
	if !bytes.Equal(got, content) {
		t.Error("the file is not what was put")
	}
	if _, code, _ := execute(t, h, "put", puts[1].Encode(), DecodeWritten); code != order.Failed {
		t.Error("a piece without the first is accepted")
	}
	bad := puts[0]
	bad.Size, bad.Data, bad.Hash[0] = 3, []byte("abc"), bad.Hash[0]+1
	if _, code, a := execute(t, h, "put", bad.Encode(), DecodeWritten); code != order.Failed || !strings.Contains(a.Message, "not what was sent") {
		t.Errorf("a file with another hash: %v %+v", code, a)
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("pieces are left: %v, %v", names, err)
	}
	empty, err := Puts(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if w, code, a := execute(t, h, "put", empty[0].Encode(), DecodeWritten); code != order.OK || !w.Done {
		t.Errorf("an empty file: %v %+v", code, a)
	}
	if _, err := Puts(path, 0, make([]byte, MaxFile+1)); err == nil {
		t.Error("a file that is too long is cut")
	}
}

func TestBroker(t *testing.T) {
	path := filepath.Join(t.TempDir(), BrokerFile)
	told := 0
	h := &Host{Node: "n", BrokerFile: path, Repointed: func() { told++ }, Status: func() Status { return Status{Broker: []string{"tls://old:4222"}} }}
	b, code, _ := execute(t, h, "broker", Broker{}.Encode(), DecodeBroker)
	if code != order.OK || !reflect.DeepEqual(b.URLs, []string{"tls://old:4222"}) || told != 0 {
		t.Errorf("%v %v", code, b)
	}
	b, code, _ = execute(t, h, "broker", Broker{URLs: []string{"nats://new:4222"}}.Encode(), DecodeBroker)
	if code != order.OK || !reflect.DeepEqual(b.URLs, []string{"nats://new:4222"}) || told != 1 {
		t.Errorf("%v %v", code, b)
	}
	for _, url := range []string{"new:4222", "http://x", "nats://", "nats://u:p@x", "nats://a\nnats://b"} {
		if _, code, _ := execute(t, h, "broker", Broker{URLs: []string{url}}.Encode(), DecodeBroker); code != order.Failed {
			t.Errorf("%q is taken for an address", url)
		}
	}
	if _, code, _ := execute(t, &Host{}, "broker", Broker{URLs: []string{"nats://x:1"}}.Encode(), DecodeBroker); code != order.Failed {
		t.Error("a broker for nobody is accepted")
	}
}

func TestUnits(t *testing.T) {
	for _, unit := range []string{"", "-x", "a b", "a;b", "a/b"} {
		if _, err := service(context.Background(), Service{unit, "status"}); err == nil || !strings.Contains(err.Error(), "name of a unit") {
			t.Errorf("%q: %v", unit, err)
		}
	}
	if _, err := service(context.Background(), Service{"ssh.service", "mask"}); err == nil || !strings.Contains(err.Error(), "mask") {
		t.Error(err)
	}
}

func TestCut(t *testing.T) {
	for _, s := range []string{"", "abc", strings.Repeat("ä", 50), strings.Repeat("\xff", 100), strings.Repeat("x", 100)} {
		got := cut(s, 30)
		if len(got) > 30 || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%q becomes %q", s, got)
		}
	}
}

// FuzzDecode checks that no decoder panics and that what is accepted has one
// encoding.
func FuzzDecode(f *testing.F) {
	puts, err := Puts("/x", 0o600, []byte("abc"))
	if err != nil {
		f.Fatal(err)
	}
	seeds := [][]byte{{0x01, 0xff}, Answer{Node: "n", Result: []byte{1}}.Encode(), Status{Node: "n"}.Encode(), Logs{"u", 1}.Encode(), Service{"u", "stop"}.Encode(),
		Broker{[]string{"nats://x"}, []byte("hint")}.Encode(), Script{Argv: []string{"x"}}.Encode(), Output{ExitCode: 1}.Encode(), Get{Path: "/x"}.Encode(),
		Chunk{Data: []byte("x")}.Encode(), puts[0].Encode(), Written{1, true}.Encode(), EncodeFacts(map[string]any{"a": int64(1)})}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		again(t, data, DecodeAnswer, Answer.Encode)
		again(t, data, DecodeStatus, nil) // the times are cut to milliseconds, and 0 is none
		again(t, data, DecodeLogs, Logs.Encode)
		again(t, data, DecodeService, Service.Encode)
		again(t, data, DecodeBroker, Broker.Encode)
		again(t, data, DecodeScript, Script.Encode)
		again(t, data, DecodeOutput, Output.Encode)
		again(t, data, DecodeGet, Get.Encode)
		again(t, data, DecodeChunk, Chunk.Encode)
		again(t, data, DecodePut, Put.Encode)
		again(t, data, DecodeWritten, Written.Encode)
		again(t, data, DecodeFacts, EncodeFacts)
	})
}

func again[T any](t *testing.T, data []byte, decode func([]byte) (T, error), encode func(T) []byte) {
	t.Helper()
	v, err := decode(data)
	if err != nil || encode == nil {
		return
	}
	if got := encode(v); !bytes.Equal(got, data) {
		t.Errorf("%x is read as %+v, which is written as %x", data, v, got)
	}
}
