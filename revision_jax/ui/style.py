"""Style and script of the search page, kept inside it so that the file stands alone."""

STYLE = """
:root{--cold:#eef2f7;--hot:#0c4494;--ink:#1f2328;--muted:#656d76;--line:#d8dee4;--paper:#fff;--ground:#f5f6f8;--found:#d9480f;--weak:#8c959f;--tint:#fff4ee}
@media (prefers-color-scheme:dark){:root{--cold:#252c36;--hot:#8fc2ff;
--ink:#e6e9ed;--muted:#9aa4af;--line:#343b44;--paper:#1b2027;--ground:#12161b;--found:#ff7a3d;--weak:#737d88;
--tint:#2a201a}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1360px;margin:0 auto;padding:28px 24px 60px}
section{display:grid;grid-template-columns:minmax(0,1fr) minmax(300px,400px);gap:28px;align-items:start}
section+section{margin-top:48px;padding-top:40px;border-top:1px solid var(--line)}
.side{order:2;position:sticky;top:24px}.questions{order:1;display:grid;gap:20px;min-width:0}
.player{background:var(--paper);border:1px solid var(--line);border-radius:10px;overflow:hidden}
video{display:block;width:100%;max-height:62vh;background:#000}
.player p{margin:0;padding:12px 16px}.file{display:flex;justify-content:space-between;gap:16px}.file b{overflow-wrap:anywhere;font-weight:600}
.file span,.spent,.long{color:var(--muted);white-space:nowrap}
.unplayable{color:var(--muted);border-bottom:1px solid var(--line)}.warning{border-top:1px solid var(--line);color:var(--found);font-size:14px}
article{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:20px 22px;min-width:0}
article header{display:flex;align-items:baseline;gap:14px}
h2{margin:0;flex:1;font-size:19px;line-height:1.35;font-weight:600;overflow-wrap:anywhere}
.verdict{white-space:nowrap;border-radius:99px;padding:2px 12px;font-size:14px;border:1.5px solid var(--weak);color:var(--muted)}
.verdict.yes{background:var(--found);border-color:var(--found);color:#fff}
.spent{font-size:14px;font-variant-numeric:tabular-nums}
.strip{margin:16px 0 14px}.heat,.lane,.axis{position:relative}
.heat{height:16px;border-radius:4px;overflow:hidden;background:var(--cold)}.heat i{position:absolute;top:0;bottom:0}
.lane{height:18px;margin-top:4px}.lane:before{content:"";position:absolute;left:0;right:0;top:8px;border-top:2px solid var(--line)}
.bar{position:absolute;top:1px;height:16px;min-width:6px;padding:0;border:0;border-radius:3px;background:var(--found);cursor:pointer}
.bar.weak{top:4px;height:10px;background:var(--paper);border:1.5px solid var(--weak)}
.axis{height:18px;font-size:12px;color:var(--muted);font-variant-numeric:tabular-nums}
.axis span{position:absolute;transform:translateX(-50%)}.axis span:first-child{transform:none}
.axis span:last-child:not(:first-child)[style="left:100.000%"]{transform:translateX(-100%)}
.moments{list-style:none;margin:0;padding:0;display:grid;gap:8px}
.moments li{border:1px solid var(--line);border-radius:8px;overflow:hidden}
.moment{display:flex;gap:18px;align-items:center;width:100%;padding:8px;border:0;background:none;color:inherit;font:inherit;text-align:left;cursor:pointer}
.moment:hover,.moment:focus-visible,.playing>.moment{background:var(--tint)}
.found.playing{border-color:var(--found)}
button:focus-visible,summary:focus-visible{outline:2px solid var(--found);outline-offset:-2px}
.shots{display:flex;gap:4px}.shots:empty{display:none}.shots img{display:block;height:90px;width:auto;border-radius:5px;background:var(--line)}
.facts{display:grid;grid-template-columns:auto auto;gap:4px 18px;align-items:baseline;padding-right:10px}
.when{font-size:18px;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap}.to{margin:0 .5em;font-weight:400;color:var(--muted);font-size:15px}
.confidence{display:flex;align-items:center;gap:10px;font-variant-numeric:tabular-nums;grid-column:1/-1}
.meter{display:block;width:180px;height:6px;border-radius:3px;background:var(--line);overflow:hidden}.meter span{display:block;height:100%;
background:var(--found)}
.weak .when{font-weight:500}.weak .meter span{background:var(--weak)}
.absent{margin:0 0 4px;color:var(--muted)}
summary{cursor:pointer;color:var(--muted);font-size:14px;padding:6px 0}.others{margin-top:8px}
.path{border-top:1px solid var(--line);padding:2px 14px}.path[open]{padding-bottom:14px}.path svg{display:block;width:100%;height:auto}
.path text{fill:var(--muted);font:13px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;font-variant-numeric:tabular-nums}
.path .end{text-anchor:end}.path .track{fill:var(--line);opacity:.55}.path .zoom{fill:var(--found);opacity:.10}
.path .kept{fill:none;stroke:var(--muted);stroke-width:1}.path .way{fill:none;stroke:var(--found);stroke-width:2}.path .goal{fill:var(--found)}
@media (max-width:900px){.axis span:nth-child(even):not(:last-child){display:none}section{grid-template-columns:minmax(0,1fr);gap:16px}.side{order:0;top:0;
z-index:2}main{padding:12px}video{max-height:34vh}
.moment{flex-direction:column;align-items:flex-start;gap:8px}.shots img{height:72px}}
""".replace("\n", "")

SCRIPT = """
for (const section of document.querySelectorAll("section")) {
  const video = section.querySelector("video"), note = section.querySelector(".unplayable");
  const rows = [...section.querySelectorAll("li")];
  const dead = () => { video.hidden = true; video.style.display = "none"; note.hidden = false; };
  video.addEventListener("error", dead);
  if (video.error) dead();
  video.addEventListener("loadedmetadata", () => { if (!video.videoWidth) dead(); });
  section.addEventListener("click", event => {
    const button = event.target.closest("button[data-at]");
    if (!button) return;
    const at = button.dataset.at;
    for (const row of rows) row.classList.toggle("playing", row.firstElementChild.dataset.at === at && row.closest("article") === button.closest("article"));
    if (note.hidden) { video.currentTime = Number(at); video.play().catch(() => {}); }
  });
}
"""


def warmth(score: float) -> str:
    """CSS colour of a score in [0, 1]: pale to deep on light paper, dim to bright on dark."""
    return f"color-mix(in srgb,var(--hot) {100 * score:.0f}%,var(--cold))"
