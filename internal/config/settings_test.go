package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

var someSettings = map[string]bool{"output": false, "agent.heartbeat": false, "agent.methods": true, "broker.listen": false}

func writeSettings(t *testing.T, files map[string]string) (folder string) {
	t.Helper()
	folder = t.TempDir()
	for name, text := range files {
		path := filepath.Join(folder, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func TestReadSettingsInOrder(t *testing.T) {
	system := writeSettings(t, map[string]string{
		"muster.yaml":     "# of this machine\noutput: json\nagent:\n  heartbeat: 10s\n  methods: [/a, /b]\n",
		"conf.d/10.yaml":  "agent:\n  heartbeat: 20s\n",
		"conf.d/20.yaml":  "agent:\n  heartbeat: 30s\n  methods: /c\n",
		"conf.d/none.txt": "nonsense",
	})
	user := writeSettings(t, map[string]string{"muster.yaml": "output: yaml\n", "conf.d/empty.yaml": "# nothing\n"})
	got, err := ReadSettings([]string{system, user, filepath.Join(user, "missing")}, someSettings)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Setting{
		"output":          {[]string{"yaml"}, filepath.Join(user, "muster.yaml"), 1},
		"agent.heartbeat": {[]string{"30s"}, filepath.Join(system, "conf.d", "20.yaml"), 2},
		"agent.methods":   {[]string{"/c"}, filepath.Join(system, "conf.d", "20.yaml"), 3},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestReadSettingsRefuses(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"an unknown key", "agent:\n  heartbeet: 1s\n", `:2: unknown key "agent.heartbeet"`},
		{"an unknown level", "agnet:\n  heartbeat: 1s\n", `:1: unknown key "agnet"`},
		{"a key twice", "output: json\noutput: yaml\n", `:2: `},
		{"a list for one value", "output: [json]\n", `:1: output: expected one value`},
		{"a mapping for a list", "agent:\n  methods: {a: b}\n", `:2: agent.methods: expected a text or a list of texts`},
		{"no value", "output:\n", `:1: output: expected one value`},
		{"a value for a level", "agent: 5\n", `:1: expected a mapping`},
		{"a list of settings", "- output\n", `:1: expected a mapping`},
		{"no YAML", "output: [\n", "not YAML"},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := writeSettings(t, map[string]string{"muster.yaml": test.text})
			_, err := ReadSettings([]string{folder}, someSettings)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), filepath.Join(folder, "muster.yaml")) {
				t.Errorf("got %v, want the file and %q", err, test.want)
			}
			if muster.KindOf(err) != muster.Invalid {
				t.Errorf("got kind %s, want %s", muster.KindOf(err), muster.Invalid)
			}
		})
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add([]byte("agent:\n  heartbeat: 1s\n  methods: [a, b]\n"))
	f.Add([]byte("a: &x [*x]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := parseSettings("f", data, someSettings)
		for key, s := range found {
			if _, known := someSettings[key]; err == nil && (!known || s.Line < 1) {
				t.Errorf("got %s at line %d", key, s.Line)
			}
		}
	})
}
