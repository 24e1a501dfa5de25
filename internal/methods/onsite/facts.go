package onsite

import (
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// GatherFacts returns what is known of this machine, under the names that the
// agent of a fleet uses too, but far less. What cannot be found is left out.
func GatherFacts() map[string]any {
	name, _ := os.Hostname() // left out if it is not known
	facts := map[string]any{
		"go":      map[string]any{"os": runtime.GOOS, "arch": runtime.GOARCH},
		"cpu":     map[string]any{"cores": int64(runtime.NumCPU())},
		"host":    known(map[string]any{"name": name, "boot_id": firstLine("/proc/sys/kernel/random/boot_id")}),
		"network": map[string]any{"addresses": addresses()},
	}
	release := osRelease()
	kernel, arch := kernelAndArch()
	facts["os"] = known(map[string]any{"name": release["NAME"], "id": release["ID"], "version": release["VERSION_ID"], "kernel": kernel, "arch": arch})
	if memory := meminfo(); len(memory) > 0 {
		facts["memory"] = memory
	}
	if seconds, err := strconv.ParseFloat(strings.SplitN(firstLine("/proc/uptime"), " ", 2)[0], 64); err == nil {
		facts["host"].(map[string]any)["uptime_seconds"] = int64(seconds)
	}
	if total, free, ok := diskSpace("/"); ok {
		facts["disks"] = []any{map[string]any{"mount": "/", "total_bytes": total, "free_bytes": free}}
	}
	return facts
}

// known leaves out what is empty, so that a selector can ask for it.
func known(values map[string]any) map[string]any {
	for key, value := range values {
		if value == "" {
			delete(values, key)
		}
	}
	return values
}

func firstLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return line
}

func osRelease() map[string]string {
	values := map[string]string{}
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		data, err = os.ReadFile("/usr/lib/os-release")
	}
	if err != nil {
		return values
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = strings.Trim(value, `"'`)
		}
	}
	return values
}

// meminfo reads what Linux says of its memory. See proc_meminfo(5).
func meminfo() map[string]any {
	values := map[string]any{}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return values
	}
	names := map[string]string{"MemTotal:": "total_bytes", "MemAvailable:": "available_bytes", "SwapTotal:": "swap_bytes"}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || names[fields[0]] == "" {
			continue
		}
		if kib, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
			values[names[fields[0]]] = kib << 10
		}
	}
	return values
}

// addresses returns those that other machines may reach.
func addresses() []any {
	list := []any{}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return list
	}
	for _, a := range all {
		if prefix, ok := a.(*net.IPNet); ok && prefix.IP.IsGlobalUnicast() {
			list = append(list, prefix.IP.String())
		}
	}
	return list
}
