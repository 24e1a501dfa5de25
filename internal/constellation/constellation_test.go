package constellation_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/constellation"
)

func generate(t testing.TB) (constellation.Constellation, constellation.Operator) {
	t.Helper()
	c, o, err := constellation.Generate("lab", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return c, o
}

func none(string) string { return "" }

func TestFilesRoundTrip(t *testing.T) {
	dir := t.TempDir()
	c, o := generate(t)
	_, second := generate(t)
	c.Operators = append(c.Operators, second.PublicKey())
	file, operator := filepath.Join(dir, "lab.json"), filepath.Join(dir, "operator.json")
	if err := errors.Join(c.Write(file), o.Write(operator)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, operator} {
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	gotC, err := constellation.Find(file, none)
	if err != nil || !reflect.DeepEqual(gotC, c) {
		t.Errorf("got %v, %v", gotC, err)
	}
	gotO, err := constellation.ReadOperator(operator)
	if err != nil || !reflect.DeepEqual(gotO, o) {
		t.Errorf("got %v, %v", gotO, err)
	}
	c.Hint = []byte("signed by an operator")
	if err := c.Replace(file); err != nil {
		t.Fatal(err)
	}
	if got, err := constellation.Find(file, none); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("with a hint: %v, %v", got, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("with a hint: %v, %v", info.Mode(), err)
	}
	signed := ed25519.Sign(gotO.PrivateKey(), []byte("call"))
	if !ed25519.Verify(gotC.Operators[0], []byte("call"), signed) {
		t.Error("the operator's key is not the one that the constellation names")
	}
}

func TestNothingIsReplaced(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lab.json")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, o := generate(t)
	for _, write := range []func(string) error{c.Write, o.Write} {
		if err := write(file); muster.KindOf(err) != muster.Conflict {
			t.Errorf("%v", err)
		}
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file now has %q", data)
	}
}

func TestReadableByOthersIsRefused(t *testing.T) {
	c, _ := generate(t)
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o644} {
		file := filepath.Join(t.TempDir(), "lab.json")
		if err := errors.Join(c.Write(file), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
		_, err := constellation.Read(file)
		if muster.KindOf(err) != muster.Denied || !strings.Contains(muster.AsError("", err).Hint, "chmod 600") {
			t.Errorf("%o: %v", mode, err)
		}
		if _, err := constellation.ReadOperator(file); muster.KindOf(err) != muster.Denied {
			t.Errorf("operator %o: %v", mode, err)
		}
	}
}

func TestVariable(t *testing.T) {
	c, _ := generate(t)
	file := filepath.Join(t.TempDir(), "lab.json")
	if err := c.Write(file); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"JSON": " " + string(c.Encode()), "path": file} {
		got, err := constellation.Find("", func(name string) string {
			if name != constellation.Variable {
				t.Errorf("asked for %s", name)
			}
			return value
		})
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := constellation.Find("", none); muster.KindOf(err) != muster.NotFound {
		t.Errorf("nothing given: %v", err)
	}
	_, err := constellation.Find("", func(string) string { return `{"secret": "hunter2"}` })
	if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), constellation.Variable) {
		t.Errorf("%v", err)
	}
}

// TestEmbedded builds a program with the constellation inside, and runs it.
func TestEmbedded(t *testing.T) {
	c, _ := generate(t)
	program := filepath.Join(t.TempDir(), "embedded")
	value := base64.StdEncoding.EncodeToString(c.Encode())
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program,
		"-ldflags", "-X github.com/musterfleet/muster/internal/constellation.embedded="+value, "./testdata/embedded")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := exec.CommandContext(t.Context(), program)
	run.Env = []string{}
	if out, err := run.CombinedOutput(); err != nil || string(out) != "lab 1\n" {
		t.Errorf("%s, %v", out, err)
	}
	other, _, _ := constellation.Generate("other", rand.Reader)
	run = exec.CommandContext(t.Context(), program)
	run.Env = []string{constellation.Variable + "=" + string(other.Encode())}
	if out, err := run.CombinedOutput(); err != nil || string(out) != "other 1\n" {
		t.Errorf("the variable comes before what is embedded: %s, %v", out, err)
	}
}

func TestBadFiles(t *testing.T) {
	b := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	good := fmt.Sprintf(`{"key":"lab","secret":%q,"operator":%q}`, b(32), b(32))
	if _, err := constellation.Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for name, data := range map[string]string{
		"empty":              ``,
		"no object":          `[]`,
		"null":               `null`,
		"unknown key":        replace(`{`, `{"port":1,`),
		"repeated key":       replace(`{`, `{"key":"lab",`),
		"key as null twice":  replace(`"lab"`, `null`),
		"another spelling":   replace(`"key"`, `"Key"`),
		"missing key":        replace(`"key":"lab",`, ``),
		"empty cluster key":  replace(`"lab"`, `""`),
		"long cluster key":   replace(`"lab"`, `"`+strings.Repeat("k", 33)+`"`),
		"number":             replace(`"lab"`, `7`),
		"short secret":       replace(b(32), b(31)),
		"long secret":        replace(b(32), b(33)),
		"no base64":          replace(b(32), "!"+b(32)[1:]),
		"line feed inside":   replace(b(32), b(32)[:20]+`\n`+b(32)[20:]),
		"no operator":        replace(`"operator":"`+b(32)+`"`, `"operator":[]`),
		"operator is object": replace(`"operator":"`+b(32)+`"`, `"operator":{}`),
		"operator is null":   replace(`"operator":"`+b(32)+`"`, `"operator":null`),
		"array of numbers":   replace(`"operator":"`+b(32)+`"`, `"operator":[1]`),
		"65 operators":       replace(`"operator":"`+b(32)+`"`, `"operator":[`+strings.Repeat(`"`+b(32)+`",`, 64)+`"`+b(32)+`"]`),
		"trailing":           good + `{}`,
		"cut":                good[:len(good)-1],
		"large":              good + strings.Repeat(" ", constellation.MaxFile),
	} {
		if c, err := constellation.Parse([]byte(data)); muster.KindOf(err) != muster.Invalid {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	if _, err := constellation.ParseOperator([]byte(good)); err == nil {
		t.Error("a constellation's file is taken for an operator's")
	}
	for _, key := range []string{"", strings.Repeat("k", 33), "\xff"} {
		if _, _, err := constellation.Generate(key, rand.Reader); muster.KindOf(err) != muster.Invalid {
			t.Errorf("key %q: %v", key, err)
		}
	}
	if _, _, err := constellation.Generate("lab", bytes.NewReader(make([]byte, 63))); err == nil {
		t.Error("generated without enough randomness")
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	secrets := bytes.NewReader(bytes.Repeat([]byte{0xab}, 64))
	c, o, err := constellation.Generate("lab", secrets)
	if err != nil {
		t.Fatal(err)
	}
	hidden := struct {
		c *constellation.Constellation
		o constellation.Operator
	}{&c, o}
	for _, v := range []any{c, &c, o, &o, c.Secret, hidden} {
		var texts []string
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			texts = append(texts, fmt.Sprintf(verb, v))
		}
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range append(texts, string(data)) {
			for _, leak := range []string{"abababab", "ABABABAB", "171 171", "0xab, 0xab", "q6urq6ur"} {
				if strings.Contains(text, leak) {
					t.Errorf("printed: %s", text)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	c, o := generate(f)
	f.Add(c.Encode())
	c.Hint = []byte("signed by an operator")
	f.Add(c.Encode())
	f.Add(o.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := constellation.Parse(data); err == nil {
			again, err := constellation.Parse(c.Encode())
			if err != nil || !reflect.DeepEqual(again, c) {
				t.Fatalf("%v, %v", again, err)
			}
		}
		if o, err := constellation.ParseOperator(data); err == nil {
			again, err := constellation.ParseOperator(o.Encode())
			if err != nil || !reflect.DeepEqual(again, o) {
				t.Fatalf("%v, %v", again, err)
			}
		}
	})
}
