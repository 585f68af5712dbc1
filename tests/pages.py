"""What can be wrong with a page, as scripts that a browser runs in it: each finds the faults."""

import os

import pytest


def lacking(what: str) -> None:
    """Skip where a reader may do without; CI may not."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"this needs {what}")


CONTRAST = """() => {
  // Text whose contrast with what is behind it is below 4.5, or 3 if it is large (WCAG 2, AA).
  const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const known = {};
  const rgba = (color) => known[color] ??= (() => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  })();
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const {backgroundColor, backgroundImage} = getComputedStyle(element);
    if (backgroundImage !== 'none') return null;  // a pattern: not for us to judge
    const color = rgba(backgroundColor);
    if (color[3] === 1) return color.slice(0, 3);
    const below = behind(element.parentElement);
    return below && over(color, below);
  };
  const luminance = (color) => color.map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || element.closest('script, style, mjx-container, [aria-hidden=true]')) continue;
    if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = getComputedStyle(element), back = behind(element);
    if (!back) continue;
    const pair = [over(rgba(style.color), back), back].map(luminance).sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      const where = `${element.tagName}.${element.className} ${text.slice(0, 40)}`;
      found[`${style.color} on ${back.map(Math.round)}: ${ratio.toFixed(2)}`] ??= where;
    }
  }
  return found;
}"""

RAW_MATH = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (element.closest('script, style, pre, code, mjx-container')) continue;
    if (/[$]|\\\\[([a-z]/.test(walker.currentNode.textContent)) found.push(element.outerHTML);
  }
  const formulas = [...document.querySelectorAll('.math')];
  found.push(...formulas.filter((f) => !f.querySelector('mjx-container')).map((f) => f.outerHTML));
  found.push(...[...document.querySelectorAll('mjx-merror')].map((f) => f.outerHTML));
  return found;
}"""

TOO_WIDE = """() => {
  if (document.documentElement.scrollWidth <= innerWidth) return [];
  return [...document.querySelectorAll('main *')].filter((element) => {
    if (element.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let e = element.parentElement; e; e = e.parentElement)
      if (getComputedStyle(e).overflowX !== 'visible') return false;
    return true;
  }).map((element) => element.outerHTML.slice(0, 200)).concat(['the page is too wide']);
}"""

WITHOUT_NAME = """() => [...document.querySelectorAll('button, input, select, textarea')]
  .filter((e) => e.checkVisibility() && e.type !== 'hidden')
  .filter((e) => !(e.innerText?.trim() || e.ariaLabel || e.title || e.dataset.bsOriginalTitle
    || e.labels?.length || e.placeholder))
  .map((e) => e.outerHTML)"""
